"""What a run leaves behind: results.json, prompt.safetensors, config.yaml, and a closing table."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from yaml import YAMLError

import coop
from coop.clip.backbone import FrozenCLIP
from coop.errors import CoopError
from coop.files import write_atomically
from coop.methods.base import Method
from coop.optimizers import DEFAULTS
from coop.schedule import PAPER_EPOCHS

RESULTS, PROMPT, CONFIG, CHECKPOINT = "results.json", "prompt.safetensors", "config.yaml", "last.ckpt"
PROMPT_KEYS = {"version", "method", "dataset", "classnames", "backbone", "pretrained", "precision", "fingerprint"}
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
    "epochs_by_shots",
    "batch_size",
    "backbone",
    "dataset",
    "method",
    "optimizer",
)


# Keys that runs of earlier versions lack, and what they did.
ADDED = {"view_sampling": "per_image", "validation": "choose", "steps": None, "epochs_by_shots": PAPER_EPOCHS}


class Prompt(NamedTuple):
    """A trained method as read from a file: its tensors by name, and the metadata that `save_prompt` wrote."""

    state: dict[str, Tensor]
    metadata: dict[str, Any]


def read_results(run_dir: Path) -> dict[str, Any]:
    """The results.json of a run.

    Raises:
        CoopError: there is none, or it is not one.
    """
    path = run_dir / RESULTS
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise CoopError(f"{path}: no such file; the folder of a finished run holds one") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CoopError(f"{path}: not readable as JSON ({error})") from error


def save_prompt(path: Path, method: Method, cfg: DictConfig, classnames: Sequence[str]) -> None:
    """The trained tensors, with all that is needed to use them again in the metadata."""
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
    write_atomically(path, save(tensors, metadata={"coop": json.dumps(metadata, ensure_ascii=False)}))


def load_prompt(path: Path) -> Prompt:
    """Read what `save_prompt` wrote.

    Raises:
        CoopError: no such file, or not one of ours.
    """
    if not path.is_file():
        raise CoopError(f"{path}: no such file; `run=` takes the folder of a finished run, which holds {PROMPT}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {})["coop"])
            if missing := PROMPT_KEYS - set(metadata):
                raise KeyError(", ".join(sorted(missing)))
            return Prompt({key: file.get_tensor(key) for key in file.keys()}, metadata)  # noqa: SIM118
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise CoopError(f"{path}: not a prompt written by coop.train ({error})") from error


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
        CoopError: tensors that are missing or of another shape.
    """
    try:
        method.load_state_dict(prompt.state)
    except RuntimeError as error:
        raise CoopError(f"{path}: does not fit this method: {str(error).splitlines()[-1].strip()}") from error


def load_config(run_dir: Path) -> DictConfig:
    """The config that a run wrote into its folder.

    Raises:
        CoopError: there is none, or it is not one.
    """
    path = run_dir / CONFIG
    try:
        cfg = OmegaConf.load(path)
    except FileNotFoundError:
        raise CoopError(f"{path}: no such file; the folder of a run holds one") from None
    except (OSError, ValueError, YAMLError) as error:
        raise CoopError(f"{path}: not readable as a config ({str(error).splitlines()[0]})") from error
    if not isinstance(cfg, DictConfig) or not {*DECISIVE, "trainer"} - set(ADDED) <= set(cfg):
        raise CoopError(f"{path}: not the config of a run")
    cfg.optimizer = {**DEFAULTS, **cfg.optimizer}
    return OmegaConf.merge(ADDED, cfg)


def decisive(cfg: DictConfig) -> dict[str, Any]:
    """The part of a config that decides the result."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    precision = {key: plain["trainer"][key] for key in ("precision", "tf32")}
    return {key: plain[key] for key in DECISIVE} | precision | {"targets": plain.get("targets", [])}


def claim_folder(run_dir: Path, cfg: DictConfig) -> None:
    """Write the config into the run's folder; what another config computed there is never mixed up with this one.

    Raises:
        CoopError: the folder holds the work of a run with another config; names the keys that differ.
    """
    path = run_dir / CONFIG
    if path.exists() and any((run_dir / name).exists() for name in (RESULTS, CHECKPOINT)):
        before, now = _flat(decisive(load_config(run_dir))), _flat(decisive(cfg))
        differing = [key for key in before | now if before.get(key) != now.get(key)]
        if differing:
            listed = "\n".join(f"  {key}: {before.get(key)} there, {now.get(key)} here" for key in differing)
            raise CoopError(f"{run_dir}: holds a run with another config; choose another hydra.run.dir\n{listed}")
    write_atomically(path, OmegaConf.to_yaml(cfg, resolve=True).encode())


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {
        key: leaf for name, child in value.items() for key, leaf in _flat(child, f"{prefix}.{name}".lstrip(".")).items()
    }


def accuracy_rows(results: dict[str, Any]) -> list[tuple[str, dict[str, float]]]:
    """Rows of the closing table: zero-shot and the method, on the run's own test set and on its targets."""
    named = {results["dataset"]: results} if "test/acc" in results else {}
    named |= results.get("targets", {})
    parts = (("zero-shot", "zero_shot"), (results["method"], "test"))
    rows = [
        (f"{name}: {label}", {key: scores[f"{part}/{key}"] for key in ("acc", "macro_acc")})
        for name, scores in named.items()
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
