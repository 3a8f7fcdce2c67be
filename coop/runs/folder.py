"""A run's folder: its results.json and config.yaml, whose it is, and the closing table."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.table import Column, Table

from coop.data.manifest import manifest_sha256
from coop.errors import CoopError, first_line
from coop.optim import DEFAULTS
from coop.optim.schedule import PAPER_EPOCHS
from coop.runs import CHECKPOINT, CONFIG, PROMPT, RESULTS
from coop.runs.earlier import as_today
from coop.runs.prompt import load_prompt
from coop.runs.schemas import CommonResults, Results, RunConfig, validated
from coop.system.files import write_atomically

# What decides a run's result; anything else may change between a run and its resumption.
DECISIVE = (
    "shots", "seed", "data_root", "epochs", "augmentation", "view_sampling", "validation", "steps", "steps_per_shot",
    "epochs_by_shots", "batch_size", "backbone", "dataset", "method", "optimizer",
)  # fmt: skip


def read_results(run_dir: Path) -> dict[str, Any]:
    """The results.json of a run, of an evaluation or of a converted prompt; "task" says of which. Raises CoopError."""
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


class _PlainYaml(yaml.SafeLoader):
    """Plain values only. Without aliases, a few lines cannot stand for gigabytes."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not allowed")
        return super().compose_node(parent, index)


def load_config(run_dir: Path) -> DictConfig:
    """The config that a run wrote into its folder. It is data: nothing in it is resolved, imported or called.

    Raises CoopError where there is none, or it is not one.
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
    """A config as it is written into the run's folder: plain values, and the content of its manifest as a hash."""
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
    plain, path = recorded(cfg), run_dir / CONFIG
    content = OmegaConf.to_yaml(OmegaConf.create(plain)).encode()
    if path.exists():
        if path.read_bytes() == content:  # as of the finished runs of a study that is started again
            return
        before = decisive(OmegaConf.to_container(load_config(run_dir)))
        if held and (lines := differing(before, decisive(plain))):
            listed = "\n".join(lines)
            raise CoopError(f"{run_dir}: holds a run with another config; choose another hydra.run.dir\n{listed}")
    elif held:
        raise CoopError(
            f"{run_dir}: holds {held[0]} without the {CONFIG} that says what computed it; "
            f"choose another hydra.run.dir, or delete {' and '.join(held)} to start anew"
        )
    write_atomically(path, content)


def claim_for_evaluation(out_dir: Path, run_dir: Path) -> None:
    """Raises CoopError where an evaluation would overwrite something else than an evaluation of the same run."""
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
    table = Table("", *(Column(name, justify="right") for name in ("accuracy %", "macro %")))
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
