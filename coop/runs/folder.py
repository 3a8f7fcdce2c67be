"""What a run leaves behind: results.json, prompt.safetensors, config.yaml, and a closing table."""

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.table import Table
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

import coop
from coop.clip.backbone import FrozenCLIP
from coop.data.manifest import manifest_sha256
from coop.errors import CoopError, first_line
from coop.methods.base import Method
from coop.optim import DEFAULTS
from coop.optim.schedule import PAPER_EPOCHS
from coop.runs import CHECKPOINT, CONFIG, PROMPT, RESULTS, check_prompt
from coop.runs.earlier import as_today
from coop.runs.schemas import CommonResults, PromptMetadata, Results, RunConfig, validated
from coop.system.files import write_atomically

CHECKSUM = "crc32"  # key in the metadata of a prompt; prompts of earlier versions have none
ANEW = f"copy it again, or delete it and {RESULTS} and start the same coop.train command again"
# What decides a run's result; anything else may change between a run and its resumption.
DECISIVE = (
    "shots",
    "seed",
    "data_root",
    "epochs",
    "augmentation",
    "view_sampling",
    "validation",
    "steps",
    "steps_per_shot",
    "epochs_by_shots",
    "batch_size",
    "backbone",
    "dataset",
    "method",
    "optimizer",
)


class Prompt(NamedTuple):
    """A trained method as read from a file: its tensors by name, and the metadata that `save_prompt` wrote."""

    state: dict[str, Tensor]
    metadata: dict[str, Any]


def read_results(run_dir: Path) -> dict[str, Any]:
    """The results.json of a run, of an evaluation or of a converted prompt; "task" says of which.

    Raises:
        CoopError: there is none, or it is not one.
    """
    path = run_dir / RESULTS
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CoopError(f"{path}: no such file; the folder of a finished run holds one") from None
    except (ValueError, RecursionError) as error:
        raise CoopError(f"{path}: not readable as JSON ({error})") from error
    trained = isinstance(content, dict) and content.get("task") == "train"
    return validated(Results if trained else CommonResults, content, path, "the results of a run")


def read_finished(run_dir: Path) -> dict[str, Any]:
    """The results.json of a run of coop.train.

    Raises:
        CoopError: as `read_results`, the folder holds something else, or what was learned is damaged.
    """
    results = read_results(run_dir)
    if results["task"] != "train":
        what = "a converted prompt" if results["task"] == "convert" else "an evaluation"
        raise CoopError(f"{run_dir}: holds {what}, which training would overwrite; choose another hydra.run.dir")
    if (run_dir / PROMPT).exists():
        load_prompt(run_dir / PROMPT)
    return results


def save_prompt(path: Path, method: Method, cfg: DictConfig, classnames: Sequence[str]) -> None:
    """The trained tensors, with all that is needed to use them again, and a checksum of both, in the metadata."""
    metadata = {
        "version": coop.__version__,
        "method": OmegaConf.to_container(cfg.method, resolve=True),
        "dataset": cfg.dataset.name,
        "classnames": list(classnames),
        "backbone": method.clip.name,
        "pretrained": method.clip.pretrained,
        "precision": method.clip.precision,
        "fingerprint": method.clip.fingerprint(),
    }
    tensors = {key: value.detach().cpu().contiguous() for key, value in method.state_dict().items()}
    metadata[CHECKSUM] = checksum(tensors, metadata)
    # Under one key: safetensors writes several in any order, and equal runs would not be equal files.
    write_atomically(path, save(tensors, metadata={"coop": json.dumps(metadata, ensure_ascii=False)}))


def checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> str:
    """Changes with any bit of the tensors (contiguous, on the CPU), their names, dtypes, shapes, or the metadata."""
    crc = zlib.crc32(json.dumps(metadata).encode())
    for name, tensor in sorted(tensors.items()):
        crc = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), crc)
        crc = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy(), crc)
    return f"{crc:08x}"


def load_prompt(path: Path) -> Prompt:
    """Read what `save_prompt` wrote.

    Raises:
        CoopError: no such file, not one of ours, damaged, or one that holds values that are not finite.
    """
    check_prompt(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {})["coop"])
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, ValueError, RecursionError) as error:
        raise CoopError(f"{path}: not a prompt written by coop.train ({error}); {ANEW}") from error
    given = metadata.pop(CHECKSUM, None) if isinstance(metadata, dict) else None
    read = validated(PromptMetadata, metadata, path, "a prompt written by coop.train")
    if given not in (None, checksum(state, metadata)):
        raise CoopError(f"{path}: damaged, its checksum does not fit its content; {ANEW}")
    for name, tensor in state.items():
        if tensor.is_floating_point() and not tensor.float().isfinite().all():
            raise CoopError(f"{path}: {name} holds values that are not finite (NaN or infinite); {ANEW}")
    return Prompt(state, read)


def check_backbone(prompt: Prompt, clip: FrozenCLIP, path: Path) -> None:
    """Refuse a prompt that was learned on another backbone: its vectors mean nothing there.

    Raises:
        CoopError: names both backbones.
    """
    learned = prompt.metadata
    same_name = (learned["backbone"], learned["pretrained"]) == (clip.name, clip.pretrained)
    # At another precision the same weights have another fingerprint; then the name has to do.
    comparable = learned["precision"] == clip.precision
    if not (learned["fingerprint"] == clip.fingerprint() if comparable else same_name):
        raise CoopError(
            f"{path}: learned on {learned['backbone']} ({learned['pretrained']}), this is {clip.name} "
            f"({clip.pretrained}){' with other weights' if same_name else ''}; "
            "a prompt works only on the backbone it was learned on"
        )


def load_into(method: Method, prompt: Prompt, path: Path) -> None:
    """Put a prompt's tensors into a method.

    Raises:
        CoopError: tensors that are missing, of another shape, or integers where numbers are learned.
    """
    for name, own in method.state_dict().items():
        given = prompt.state.get(name, own)
        if given.is_floating_point() != own.is_floating_point():
            raise CoopError(f"{path}: {name} holds {given.dtype}, expected {own.dtype}; not what this method learns")
    try:
        method.load_state_dict(prompt.state)
    except RuntimeError as error:
        raise CoopError(f"{path}: does not fit this method: {str(error).splitlines()[-1].strip()}") from error


class _PlainYaml(yaml.SafeLoader):
    """Plain values only. Without aliases, a few lines cannot stand for gigabytes."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not allowed")
        return super().compose_node(parent, index)


def load_config(run_dir: Path) -> DictConfig:
    """The config that a run wrote into its folder. It is data: nothing in it is resolved, imported or called.

    Raises:
        CoopError: there is none, or it is not one.
    """
    path = run_dir / CONFIG
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _PlainYaml)
    except FileNotFoundError:
        raise CoopError(f"{path}: no such file; the folder of a run holds one") from None
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise CoopError(f"{path}: not readable as a config ({first_line(error)})") from error
    content = validated(RunConfig, content, path, "the config of a run")
    content = as_today(content) | {"optimizer": DEFAULTS | content["optimizer"]}
    for key, value in flat(content).items():
        if "${" in str(value) or value == "???":
            raise CoopError(f"{path}: not the config of a run: {key} is {value!r}, expected a plain value")
    try:
        return OmegaConf.create(content)
    except OmegaConfBaseException as error:
        raise CoopError(f"{path}: not the config of a run: {str(error).splitlines()[0]}") from error


def recorded(cfg: DictConfig) -> dict[str, Any]:
    """A config as it is written into the run's folder: plain values, and the content of its manifest as a hash.

    Raises:
        CoopError: the manifest cannot be read.
    """
    plain = OmegaConf.to_container(cfg, resolve=True)
    if plain["dataset"].get("manifest"):
        plain["dataset"]["manifest_sha256"] = manifest_sha256(plain["dataset"]["manifest"])
    return plain


def decisive(plain: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a config, as `recorded` gives it, that decides the result, under dotted keys.

    What is published for others than this run (`method.published`) decides nothing: the options that it led to do.
    """
    precision = {key: plain["trainer"][key] for key in ("precision", "tf32")}
    rule = {"epochs_by_shots": plain["epochs_by_shots"] or PAPER_EPOCHS}  # which earlier versions wrote out
    keys = flat({key: plain[key] for key in DECISIVE} | precision | rule | {"targets": plain.get("targets", [])})
    return {key: value for key, value in keys.items() if not key.startswith("method.published")}


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Where the decisive parts of two configs differ, a line per key.

    Manifests are compared by their content; in folders of earlier versions, which have no hash, by their path.
    """
    other = "dataset.manifest" if before.get("dataset.manifest_sha256") else "dataset.manifest_sha256"
    keys = [key for key in before | now if key != other and before.get(key) != now.get(key)]
    return [f"  {key}: {before.get(key)} there, {now.get(key)} here" for key in keys]


def claim_folder(run_dir: Path, cfg: DictConfig) -> None:
    """Write the config into the run's folder; what another command computed there is never mixed up with this run.

    Raises:
        CoopError: the folder holds a run with another config, or what no config there accounts for (an evaluation).
    """
    held = [name for name in (RESULTS, CHECKPOINT, PROMPT) if (run_dir / name).exists()]
    plain = recorded(cfg)
    if (run_dir / CONFIG).exists():
        before = decisive(OmegaConf.to_container(load_config(run_dir)))
        if held and (lines := differing(before, decisive(plain))):
            listed = "\n".join(lines)
            raise CoopError(f"{run_dir}: holds a run with another config; choose another hydra.run.dir\n{listed}")
    elif held:
        raise CoopError(
            f"{run_dir}: holds {held[0]} without the {CONFIG} that says what computed it; "
            f"choose another hydra.run.dir, or delete {' and '.join(held)} to start anew"
        )
    write_atomically(run_dir / CONFIG, OmegaConf.to_yaml(OmegaConf.create(plain)).encode())


def claim_for_evaluation(out_dir: Path, run_dir: Path) -> None:
    """Refuse to put an evaluation where it would overwrite something else.

    Raises:
        CoopError: the folder holds a run, the evaluation of another run, or a results.json of unknown origin.
    """
    if any((out_dir / name).exists() for name in (CONFIG, PROMPT, CHECKPOINT)):
        raise CoopError(f"{out_dir}: holds a run, whose results would be overwritten; choose another hydra.run.dir")
    if not (out_dir / RESULTS).exists():
        return
    before = read_results(out_dir)
    if before["task"] != "evaluate" or Path(str(before.get("run"))).resolve() != run_dir.resolve():
        raise CoopError(
            f"{out_dir}: holds the results of {before.get('run', 'another run')}, which would be overwritten; "
            "choose another hydra.run.dir"
        )


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings under dotted keys."""
    if not isinstance(value, dict):
        return {prefix: value}
    return {
        key: leaf for name, child in value.items() for key, leaf in flat(child, f"{prefix}.{name}".lstrip(".")).items()
    }


def by_test_set(results: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Accuracies in a results.json by data set: the run's own, if it was tested on it, and its targets."""
    own = {results["dataset"]: results} if "test/acc" in results else {}
    return own | results.get("targets", {})


def accuracy_rows(results: Mapping[str, Any]) -> list[tuple[str, dict[str, float]]]:
    """Rows of the closing table: zero-shot and the method, on the run's own test set and on its targets."""
    parts = (("zero-shot", "zero_shot"), (results["method"], "test"))
    rows = [
        (f"{name}: {label}", {key: scores[f"{part}/{key}"] for key in ("acc", "macro_acc")})
        for name, scores in by_test_set(results).items()
        for label, part in parts
    ]
    if "test/harmonic_mean" in results:
        rows += [
            (f"harmonic mean of base and new: {label}", {"acc": results[f"{part}/harmonic_mean"], "macro_acc": None})
            for label, part in parts
        ]
    return rows


def closing_table(title: str, rows: Sequence[tuple[str, dict[str, float]]], files: dict[str, Path]) -> None:
    """Accuracies in percent, and where everything lies."""
    console = Console(markup=False, emoji=False, highlight=False)
    console.print(f"\n{title}")
    table = Table()
    table.add_column("")
    table.add_column("accuracy %", justify="right")
    table.add_column("macro %", justify="right")
    for label, scores in rows:
        table.add_row(label, *("" if value is None else f"{100 * value:.2f}" for value in scores.values()))
    console.print(table)
    for label, path in files.items():
        console.print(f"{label:<9}{path}", soft_wrap=True)


def show_run(results: dict, run_dir: Path) -> None:
    """The closing table: zero-shot, the method, and where everything lies."""
    title = (
        f"{results['dataset']}, {results['shots']} shots, seed {results['seed']}, {results['backbone']}: "
        f"{results['n_test']} test images of {results['num_classes']} classes (split: {results['split']}, "
        f"augmentation: {results['augmentation']}); {results['trainable_params']:,} trained parameters, "
        f"{results['epochs']} epochs; "
        f"encoding {results.get('encode_seconds', 0):.0f} s, fitting {results['fit_seconds']:.0f} s, "
        f"testing {results['test_seconds']:.0f} s"
    )
    files = {"results": run_dir / RESULTS, "prompt": run_dir / PROMPT, "run": run_dir}
    closing_table(title, accuracy_rows(results), files)
