"""Finding runs and reading them: what was run (keys) and what came out (scores)."""

import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from coop.errors import CoopError

RESULTS, CONFIG, ERROR = "results.json", "config.yaml", "error.txt"
# Keys of results.json that say what was run. What is not listed describes the outcome, or cannot change it.
REQUIRED = {"method": str, "backbone": str, "dataset": str, "shots": int}
RECORDED = REQUIRED | {
    "pretrained": str,
    "classes": str,
    "split": str,
    "num_classes": int,
    "n_test": int,
    "n_ctx": int,
    "class_specific": bool,
    "class_token_position": str,
    "augmentation": str,
    "epochs": int,
    "batch_size": int,
    "precision": str,
    "tf32": bool,
    "trainable_params": int,
}
DATA_KEYS = ("dataset", "classes", "split", "num_classes", "n_test")
# Keys of config.yaml that results.json records resolved, that say where files lie, or that only save memory.
IGNORED = {
    "backbone": {"name", "pretrained", "cache_dir"},
    "dataset": {"_target_", "name", "classes", "epochs", "image_folders", "folders", "split_file"},
    "method": {
        *("_target_", "name", "n_ctx", "class_specific", "class_token_position"),
        *("checkpoint", "class_chunk"),
    },
    "optimizer": set(),
}
RUNS_OWN = "the run's"  # stands for a split's seed that is the seed of the run
YamlLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Keys = dict[str, Any]


class NotARunError(Exception):
    """A file that is not the result of a run; the message says why."""


@dataclass(frozen=True)
class Score:
    """One accuracy of one seed, with everything that decides it.

    Attributes:
        keys: what was run and on what it was tested, without the seed; keys that do not apply are absent.
        seed: of the run.
        acc, macro_acc, zero_shot: fractions; macro_acc may be None.
        path: the results.json it stands in.
    """

    keys: Keys
    seed: int
    acc: float
    macro_acc: float | None
    zero_shot: float
    path: Path


@dataclass
class Found:
    """What lies beneath the folders of runs.

    Attributes:
        folders: as they were given.
        trained: one score per finished run of coop.train.
        zero_shot: zero-shot CLIP on the same test sets; many runs give the same.
        transferred: one score per run of coop.evaluate and data set.
        transferred_zero_shot: zero-shot CLIP on those.
        left_out: (path, reason) of what is not the result of a run.
        unfinished: (folder, what is known) of runs that were started and have no result.
        versions: versions of coop that wrote the runs.
    """

    folders: list[Path] = field(default_factory=list)
    trained: list[Score] = field(default_factory=list)
    zero_shot: list[Score] = field(default_factory=list)
    transferred: list[Score] = field(default_factory=list)
    transferred_zero_shot: list[Score] = field(default_factory=list)
    left_out: list[tuple[Path, str]] = field(default_factory=list)
    unfinished: list[tuple[Path, str]] = field(default_factory=list)
    versions: set[str] = field(default_factory=set)


def read_runs(folders: Sequence[Path]) -> Found:
    """Read all runs beneath the folders.

    Raises:
        CoopError: a folder does not exist, or there is not one run in all of them.
    """
    found = Found(list(folders))
    for folder in folders:
        if not folder.exists():
            raise CoopError(f"{folder}: no such folder; give folders of runs, such as runs/few_shot_curve")
    results = {os.path.realpath(path): path for folder in folders for path in _search(folder, found)}
    for path in results.values():
        try:
            _add(found, path)
        except NotARunError as error:
            found.left_out.append((path, str(error)))
        except OSError as error:
            found.left_out.append((path, f"cannot be read ({error.strerror})"))
    found.left_out, found.unfinished = list(dict.fromkeys(found.left_out)), list(dict.fromkeys(found.unfinished))
    if not (found.trained or found.transferred):
        listed = "".join(f"\n  {path}: {reason}" for path, reason in found.left_out[:10])
        where = ", ".join(map(str, folders))
        raise CoopError(
            f"{where}: no finished run beneath; a run's folder holds {RESULTS}. Start one with python -m coop.train"
            + (f"\nLeft out:{listed}" if listed else "")
        )
    return found


def _search(folder: Path, found: Found) -> Iterator[Path]:
    """Paths of results.json, sorted; folders without one that a run was started in are noted."""
    if not folder.is_dir():
        found.left_out.append((folder, "not a folder"))
        return

    def unreadable(error: OSError) -> None:
        found.left_out.append((Path(error.filename), f"cannot be read ({error.strerror})"))

    for parent, subfolders, files in os.walk(folder, onerror=unreadable):
        # Hydra and W&B keep files named config.yaml as well.
        subfolders[:] = sorted(name for name in subfolders if not name.startswith(".") and name != "wandb")
        if RESULTS in files:
            yield Path(parent, RESULTS)
        elif {CONFIG, ERROR} & set(files):
            found.unfinished.append((Path(parent), _failure(Path(parent, ERROR))))


def _failure(path: Path) -> str:
    """What a sweep wrote down of a run that failed: its last line."""
    try:
        return f"failed: {path.read_text(errors='replace').strip().splitlines()[-1]}"
    except (OSError, IndexError):
        return "no result yet"


def _add(found: Found, path: Path) -> None:
    results = _load(path)
    task = results.get("task")
    if task not in ("train", "evaluate"):
        raise NotARunError(f'"task" is {task!r}; expected "train" or "evaluate"')
    missing = [key for key in (*REQUIRED, "seed") if results.get(key) is None]
    if missing:
        raise NotARunError(f'"{missing[0]}" is not there')
    recorded = _recorded(results, RECORDED | {"seed": int})
    seed = recorded.pop("seed")
    trained_in = path.parent if task == "train" else Path(str(results.get("run")))
    keys = _run_keys(recorded, _config(trained_in / CONFIG), seed)
    if task == "train":
        score = _score(keys, results, path)
        found.trained.append(_without_training(score) if is_zero_shot(keys["method"]) else score)
        found.zero_shot.append(_zero_shot(score))
    if task == "evaluate" or results.get("targets"):
        scores = _targets(keys, results, path)
        found.transferred += scores
        found.transferred_zero_shot += [_zero_shot(score) for score in scores]
    found.versions.add(str(results.get("version")))


def _recorded(values: dict[str, Any], kinds: dict[str, type]) -> Keys:
    """Those of the keys that are there.

    Raises:
        NotARunError: one is of another type than coop writes.
    """
    recorded = {key: values[key] for key in kinds if values.get(key) is not None}
    for key, value in recorded.items():
        if type(value) is not kinds[key]:
            raise NotARunError(f'"{key}" is {value!r}; expected {kinds[key].__name__}')
    return recorded


def _load(path: Path) -> dict[str, Any]:
    try:
        results = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise NotARunError(f"not readable as JSON, perhaps half-written ({error})") from None
    if not isinstance(results, dict):
        raise NotARunError(f"holds a {type(results).__name__}; expected an object")
    return results


def _config(path: Path) -> dict[str, Any] | None:
    """The parts of a run's config.yaml that matter here; None where it is not there, or not one."""
    try:
        config = yaml.load(path.read_bytes(), YamlLoader)
    except (OSError, yaml.YAMLError, ValueError, RecursionError):
        return None
    if not isinstance(config, dict) or not all(isinstance(config.get(group), dict) for group in IGNORED):
        return None
    return {group: config[group] for group in IGNORED}


def _run_keys(recorded: Keys, config: dict[str, Any] | None, seed: int) -> Keys:
    """What results.json records, and what config.yaml adds to it under dotted names."""
    keys = {"classes": "all"} | recorded
    if "pretrained" in keys:
        keys["pretrained"] = Path(keys["pretrained"]).name  # a file may lie elsewhere on another machine
    if config is None:
        return keys | {"config.yaml": "not there"}
    for group, ignored in IGNORED.items():
        if group == "optimizer" and not keys.get("epochs"):
            continue
        for key, value in config[group].items():
            if key not in ignored and value is not None:
                keys[f"{group}.{key}"] = (
                    value if isinstance(value, str | int | float) else json.dumps(value, default=str)
                )
    # What says nothing more: the same template twice, a model's own name, a folder's place on this machine.
    if keys.get("method.template") == keys.get("dataset.template"):
        keys.pop("method.template", None)
    if keys.get("backbone.model") == keys["backbone"]:
        del keys["backbone.model"]
    elif "backbone.model" in keys:
        keys["backbone.model"] = Path(str(keys["backbone.model"]).removeprefix("local-dir:")).name
    if "dataset.manifest_sha256" in keys:  # its content says more than its path
        keys.pop("dataset.manifest", None)
    if keys.get("dataset.seed") == seed:
        keys["dataset.seed"] = RUNS_OWN
    return keys


def _score(keys: Keys, scores: dict[str, Any], path: Path) -> Score:
    values = [scores.get(key) for key in ("test/acc", "test/macro_acc", "zero_shot/acc")]
    for key, value in zip(("test/acc", "zero_shot/acc"), (values[0], values[2]), strict=True):
        if type(value) not in (int, float) or not (math.isfinite(value) and 0 <= value <= 1):
            raise NotARunError(f'"{key}" is {value!r}; expected an accuracy from 0 to 1')
    macro = values[1] if isinstance(values[1], float) and math.isfinite(values[1]) else None
    return Score(keys, scores["seed"], values[0], macro, values[2], path)


def _targets(keys: Keys, results: dict[str, Any], path: Path) -> list[Score]:
    """One score per target data set, and one for the data set that the run was trained on.

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
    scores = []
    for name, entry in entries:
        tested = _recorded(entry, {key: RECORDED[key] for key in DATA_KEYS}) | {"dataset": name}
        scores.append(_score(run_keys | source | tested, entry | {"seed": results["seed"]}, path))
    return scores


def is_zero_shot(method: str) -> bool:
    """Whether a method learns nothing from images, so that neither shots nor seed matter."""
    return method.startswith("zero_shot")


def _without_training(score: Score) -> Score:
    """A zero-shot method's score without the keys that mean nothing to it."""
    kept = {*DATA_KEYS, "method", "backbone", "pretrained", "precision", "tf32", "config.yaml"}
    dotted = ("dataset.", "backbone.", "method.")
    keys = {key: value for key, value in score.keys.items() if key in kept or key.startswith(dotted)}
    return replace(score, keys=keys | {"shots": 0})


def _zero_shot(score: Score) -> Score:
    """The accuracy of zero-shot CLIP, with the data set's template, that stands beside a run's own."""
    keys = {key: value for key, value in score.keys.items() if not key.startswith("method")}
    beside = replace(score, keys=keys | {"method": "zero_shot"}, acc=score.zero_shot, macro_acc=None)
    return _without_training(beside)
