"""Runs read from disk into one table: what was run (a column for each key) and what came out."""

import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from coop.errors import CoopError
from coop.runs import CONFIG, ERROR, RESULTS

# Keys of results.json that say what was run. What is not listed describes the outcome, or cannot change it.
REQUIRED = {"method": str, "backbone": str, "dataset": str, "shots": int}
RECORDED = REQUIRED | dict(pretrained=str, classes=str, split=str, num_classes=int, n_test=int, n_ctx=int)
RECORDED |= dict(class_specific=bool, class_token_position=str, augmentation=str, epochs=int, batch_size=int)
RECORDED |= dict(precision=str, tf32=bool, validation=str, trainable_params=int)
DATA_KEYS = ("dataset", "classes", "split", "num_classes", "n_test")
# Keys of config.yaml that results.json records resolved, that say where files lie, or that only save memory.
IGNORED = {
    "backbone": {"name", "pretrained", "cache_dir"},
    "dataset": {"_target_", "name", "classes", "epochs", "image_folders", "folders", "split_file"},
    "optimizer": set(),
    "method": {"_target_", "name", "published", "checkpoint", "class_chunk", "n_ctx", "class_specific"}
    | {"class_token_position"},
}
# What a run took, and what its predictions are worth beyond accuracy; None where a run did not record it.
COSTS = ("encode_seconds", "fit_seconds", "test_seconds", "step_seconds", "peak_memory_mb")
METRICS = ("ece", "auroc", "fpr95")
MEASURED = (*COSTS, *METRICS)
# Columns that are no keys. `kind`: which test a row is of, `OWN`, `BASE_TO_NEW` or `TRANSFER`.
OUTCOME = ("seed", "acc", "macro_acc", "zero_shot", "path", "version", "kind", "uses", "derived", *MEASURED)
OWN, BASE_TO_NEW, TRANSFER = KINDS = "own", "base to new", "transfer"
# Of a method that learns nothing from images, all other keys mean nothing.
ZERO_SHOT_KEYS = {*DATA_KEYS, "method", "shots", "backbone", "pretrained", "precision", "tf32", "config.yaml"}
READ = (*IGNORED, "epochs", "steps", "view_sampling")
# The config as it was written, which Hydra leaves beside the run's own, and what it may derive from other keys.
WRITTEN = Path(".hydra", CONFIG)
DERIVED = ("method", "optimizer", *(RECORDED.keys() - IGNORED.keys()))
PUBLISHED = "published"  # the epochs of a config that leaves them to the method's or the data set's rule
# What reading a file raises that is not there, not YAML, or not a config.
NO_CONFIG = (OSError, yaml.YAMLError, ValueError, RecursionError, LookupError, TypeError, AttributeError)
YamlLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class NotARunError(Exception):
    """A file that is not the result of a run; the message says why."""


@dataclass
class Records:
    """What lies beneath the folders of runs."""

    folders: list[Path]  # as they were given
    # A row for each run and test set: `keys_of` say what was run, `OUTCOME` what came out (accuracies are fractions);
    # a key that does not apply is None.
    runs: pd.DataFrame = field(default_factory=pd.DataFrame)
    left_out: list[tuple[Path, str]] = field(default_factory=list)  # what is not the result of a run, and why
    unfinished: list[tuple[Path, str]] = field(default_factory=list)  # runs without a result, and what is known of them

    @property
    def count(self) -> int:
        """Number of files read; an evaluation has several rows."""
        return self.runs["path"].nunique()


def keys_of(frame: pd.DataFrame) -> list[str]:
    """The columns that say what was run."""
    return [name for name in frame.columns if name not in OUTCOME]


def is_zero_shot(methods: pd.Series) -> pd.Series:
    """Whether methods learn nothing from images, so that neither shots nor seed matter."""
    return methods.str.startswith("zero_shot").astype(bool)


def shown(path: Path | str) -> str:
    """A path as text; bytes of its name that are not UTF-8 are written as escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def read_runs(folders: Sequence[Path]) -> Records:
    """Read all runs beneath the folders.

    Raises:
        CoopError: a folder does not exist, or there is not one run in all of them.
    """
    records = Records(list(folders))
    for folder in folders:
        if not folder.exists():
            raise CoopError(f"{shown(folder)}: no such folder; give folders of runs, such as runs/few_shot_curve")
    paths = {os.path.realpath(path): path for folder in folders for path in _search(folder, records)}
    rows: list[dict[str, Any]] = []
    for path in paths.values():
        try:
            rows += _rows(path)
        except NotARunError as error:
            records.left_out.append((path, str(error)))
        except OSError as error:
            records.left_out.append((path, f"cannot be read ({error.strerror})"))
    records.left_out = list(dict.fromkeys(records.left_out))
    records.unfinished = list(dict.fromkeys(records.unfinished))
    if not rows:
        listed = "".join(f"\n  {shown(path)}: {reason}" for path, reason in records.left_out[:10])
        raise CoopError(
            f"{', '.join(map(shown, folders))}: no finished run beneath; a run's folder holds {RESULTS}. "
            "Start one with python -m coop.train" + (f"\nLeft out:{listed}" if listed else "")
        )
    records.runs = _frame(rows)
    return records


def _search(folder: Path, records: Records) -> Iterator[Path]:
    """Paths of results.json, sorted; folders without one that a run was started in are noted."""
    if not folder.is_dir():
        records.left_out.append((folder, "not a folder"))
        return

    def unreadable(error: OSError) -> None:
        records.left_out.append((Path(error.filename), f"cannot be read ({error.strerror})"))

    for parent, subfolders, files in os.walk(folder, onerror=unreadable):
        # Hydra and W&B keep files named config.yaml as well.
        subfolders[:] = sorted(name for name in subfolders if not name.startswith(".") and name != "wandb")
        if RESULTS in files:
            yield Path(parent, RESULTS)
        elif {CONFIG, ERROR} & set(files):
            records.unfinished.append((Path(parent), _failure(Path(parent, ERROR))))


def _failure(path: Path) -> str:
    """What a sweep wrote down of a run that failed: its last line."""
    try:
        return f"failed: {path.read_text(errors='replace').strip().splitlines()[-1]}"
    except (OSError, IndexError):
        return "no result yet"


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Rows as a table; keys keep their types, and None stands where a row does not have one."""
    frame = pd.DataFrame(rows, dtype=object)
    frame = frame.where(frame.notna(), None)
    frame = frame.astype({"seed": int, **dict.fromkeys(("acc", "macro_acc", "zero_shot", *MEASURED), float)})
    zero_shot = is_zero_shot(frame["method"])
    return pd.concat([frame[~zero_shot], without_training(frame[zero_shot])]).sort_index() if any(zero_shot) else frame


def without_training(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of zero-shot methods without the keys that mean nothing to them."""
    kept = ("dataset.", "backbone.", "method.")
    dropped = [key for key in keys_of(frame) if key not in ZERO_SHOT_KEYS and not key.startswith(kept)]
    return frame.assign(**dict.fromkeys(dropped), shots=0, derived="{}").astype({"shots": object})


def zero_shot_beside(runs: pd.DataFrame) -> pd.DataFrame:
    """Zero-shot CLIP with the data set's template, as it stands beside each run."""
    unknown = dict.fromkeys(("macro_acc", *MEASURED), math.nan)
    unknown |= dict.fromkeys(["uses", *(key for key in runs.columns if key.startswith("method."))])
    return without_training(
        runs.assign(method="zero_shot", acc=runs["zero_shot"], **unknown).astype({"method": object})
    )


def _rows(path: Path) -> list[dict[str, Any]]:
    """The rows of one results.json: what was tested where it was trained, and what elsewhere."""
    try:
        results = json.loads(path.read_bytes())
        json.dumps(results, ensure_ascii=False).encode()  # halves of surrogate pairs are JSON, and no text
    except (ValueError, RecursionError) as error:
        raise NotARunError(f"not readable as JSON, perhaps half-written ({error})") from None
    if not isinstance(results, dict):
        raise NotARunError(f"holds a {type(results).__name__}; expected an object")
    if (task := results.get("task")) not in ("train", "evaluate"):
        raise NotARunError(f'"task" is {task!r}; expected "train" or "evaluate"')
    if missing := [key for key in (*REQUIRED, "seed") if results.get(key) is None]:
        raise NotARunError(f'"{missing[0]}" is not there')
    recorded = _recorded(results, RECORDED | {"seed": int, "options": dict})
    seed, options = recorded.pop("seed"), recorded.pop("options", None)
    folder = path.parent if task == "train" else Path(str(results.get("run")))
    config = _config(folder / CONFIG, [name for name in READ if name != "method" or options is None])
    derived = {key: text for key, text in (_config(folder / WRITTEN, DERIVED) or {}).items() if "${" in str(text)}
    by_rule = config is not None and not config.pop("epochs", None)
    if by_rule and recorded.get("epochs"):
        derived["epochs"] = PUBLISHED
    keys = _run_keys(recorded, config, options, seed)
    uses = results.get("uses")
    common = {
        "seed": seed,
        "path": shown(path),
        "version": str(results.get("version")),
        "derived": json.dumps({key: text for key, text in derived.items() if key in keys}, sort_keys=True),
        "uses": ", ".join(map(str, uses)) if isinstance(uses, list) else None,
        **{name: _number(results.get(name)) for name in COSTS},
    }
    own = [keys | _scores(results) | common | {"kind": OWN}] if task == "train" else []
    elsewhere = _targets(keys, results) if task == "evaluate" or results.get("targets") else ()
    return own + [row | common for row in elsewhere]


def _recorded(values: dict[str, Any], kinds: dict[str, type]) -> dict[str, Any]:
    """Those of the keys that are there, of the types that coop writes."""
    recorded = {key: values[key] for key in kinds if values.get(key) is not None}
    for key, value in recorded.items():
        if type(value) is not kinds[key]:
            raise NotARunError(f'"{key}" is {value!r}; expected {kinds[key].__name__}')
    return recorded


def _number(value: Any) -> float | None:
    return float(value) if type(value) in (int, float) and math.isfinite(value) else None


def _scores(entry: dict[str, Any]) -> dict[str, Any]:
    for key in ("test/acc", "zero_shot/acc"):
        value = _number(entry.get(key))
        if value is None or not 0 <= value <= 1:
            raise NotARunError(f'"{key}" is {entry.get(key)!r}; expected an accuracy from 0 to 1')
    measured = {name: _number(entry.get(f"test/{name}")) for name in ("macro_acc", *METRICS)}
    return {"acc": entry["test/acc"], "zero_shot": entry["zero_shot/acc"]} | measured


def _targets(keys: dict[str, Any], results: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One row per target data set, and one for the data set that the run was trained on.

    Of a target, only what its entry says is known: the config is that of the training.
    """
    targets = results.get("targets")
    if not isinstance(targets, dict) or not all(isinstance(entry, dict) for entry in targets.values()):
        raise NotARunError('"targets" is not there; expected one entry per data set')
    source = {"trained_on": keys["dataset"], "trained_classes": keys["classes"]}
    # Half of a data set's classes has a key of its own: "caltech101:new".
    named = [(name.removesuffix(f":{entry.get('classes')}"), entry) for name, entry in targets.items()]
    entries = [(name, {"classes": "all"} | entry) for name, entry in named]
    if (keys["dataset"], keys["classes"]) not in [(name, entry["classes"]) for name, entry in entries]:
        entries.insert(0, (keys["dataset"], results))
    run_keys = {key: value for key, value in keys.items() if key not in DATA_KEYS and not key.startswith("dataset.")}
    halves = keys["classes"] == "base" and (keys["dataset"], "new") in [(name, e["classes"]) for name, e in entries]
    for name, entry in entries:
        tested = _recorded(entry, {key: RECORDED[key] for key in DATA_KEYS}) | {"dataset": name}
        kind = BASE_TO_NEW if halves and name == keys["dataset"] else TRANSFER
        yield run_keys | source | tested | _scores(entry) | {"kind": kind}


def _config(path: Path, names: Iterable[str]) -> dict[str, Any] | None:
    """Keys of these blocks of a YAML file, those of groups under dotted names; None where it is not there, or broken.

    Runs of a study share most of their config, so each block is parsed once, however many files it stands in.
    """
    try:
        text = path.read_text(encoding="utf-8")
        blocks = {block.partition(":")[0]: block for block in re.split(r"^(?=\w)", text, flags=re.MULTILINE)}
        found = [_parse(blocks[name]) for name in names if name in blocks]
    except NO_CONFIG:
        return None
    return {key: value for keys in found for key, value in keys.items() if value is not None} if found else None


@cache
def _parse(block: str) -> dict[str, Any]:
    ((name, value),) = yaml.load(block, YamlLoader).items()
    return flat(name, value) if name in IGNORED else {name: value}


def flat(group: str, values: dict[str, Any]) -> dict[str, Any]:
    """Options under dotted names; a method's own optimizer stands where all optimizers do."""
    keys = {}
    for key, value in values.items():
        if key in IGNORED.get(group, ()) or value is None:
            continue
        name = f"{group}.{key}".removeprefix("method.") if key == "optimizer" else f"{group}.{key}"
        if isinstance(value, dict):
            keys |= flat(name, value)
        else:
            keys[name] = value if isinstance(value, str | int | float) else json.dumps(value, default=str)
    return keys


def _run_keys(
    recorded: dict[str, Any], config: dict[str, Any] | None, options: dict[str, Any] | None, seed: int
) -> dict[str, Any]:
    """What results.json records, and what config.yaml adds to it under dotted names."""
    keys = {"classes": "all", "validation": "choose"} | recorded
    if "pretrained" in keys:
        keys["pretrained"] = Path(keys["pretrained"]).name  # a file may lie elsewhere on another machine
    keys |= {"config.yaml": "not there"} if config is None else config
    keys |= flat("method", options or {})
    if not keys.get("epochs"):
        keys = {key: value for key, value in keys.items() if key != "epochs" and not key.startswith("optimizer.")}
    if not keys.get("augmentation", "").startswith("views"):
        keys.pop("view_sampling", None)
    # What says nothing more: the same template twice, a model's own name, a folder's place on this machine.
    if keys.get("method.template") == keys.get("dataset.template"):
        keys.pop("method.template", None)
    if keys.get("backbone.model") == keys["backbone"]:
        del keys["backbone.model"]
    elif "backbone.model" in keys:
        keys["backbone.model"] = Path(str(keys["backbone.model"]).removeprefix("local-dir:")).name
    if "dataset.manifest_sha256" in keys:  # its content says more than its path; where each seed has a file, its name
        name = keys.pop("dataset.manifest", "")
        of_all_seeds = re.sub(rf"(seed[-_=]?){seed}(?!\d)", r"\1*", name)
        if of_all_seeds != name:
            keys["dataset.manifest"] = Path(of_all_seeds).name
            del keys["dataset.manifest_sha256"]
    return keys
