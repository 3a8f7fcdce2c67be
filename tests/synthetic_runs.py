"""Folders of runs as coop.train and coop.evaluate leave them, with invented accuracies, for the tests of the report."""

import json
from pathlib import Path
from typing import Any

import yaml

from coop.optim.schedule import epochs_by_shots

YamlDumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def write_run(
    folder: Path, acc: float = 0.8, config: dict | None = None, written: dict | None = None, **changed: Any
) -> dict:
    """One finished run in the paper's setting: Caltech101, RN50, 16 shots, M = 16, unified, end; zero-shot 0.6.

    Args:
        folder: of the run.
        acc: its test accuracy.
        config: changes to its config.yaml, as {group: {key: value}}; False: no config.yaml.
        written: what Hydra wrote down of the config before it put values in; without it there is no such file.
        changed: keys of results.json; None leaves a key out.

    Returns:
        What results.json holds.
    """
    method = changed.get("method", "coop")
    results = (
        results_of(method, changed.get("dataset", "caltech101"), changed.get("shots", 16))
        | {"test/acc": acc, "test/macro_acc": acc - 0.01}
        | changed
    )
    results = {key: value for key, value in results.items() if value is not None}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results))
    if config is not False:
        text = yaml.dump(config_of(results, config or {}), Dumper=YamlDumper, sort_keys=False)
        (folder / "config.yaml").write_text(text)
    if written is not None:
        (folder / ".hydra").mkdir(exist_ok=True)
        (folder / ".hydra/config.yaml").write_text(yaml.dump(written, Dumper=YamlDumper))
    return results


def published_epochs(dataset: str, shots: int) -> int:
    """CoOp's rule with its exception: ImageNet always 50 (section 4.1)."""
    return 50 if dataset == "imagenet" else epochs_by_shots(shots)


def results_of(method: str, dataset: str, shots: int) -> dict:
    learned = {"n_ctx": 16, "class_specific": False, "class_token_position": "end"} if method == "coop" else {}
    return {
        "task": "train",
        "method": method,
        "backbone": "RN50-quickgelu",
        "pretrained": "openai",
        "dataset": dataset,
        "classes": "all",
        "split": "published",
        "shots": shots,
        "seed": 1,
        **learned,
        "augmentation": "online",
        "features": "online",
        "batch_size": 32,
        "precision": "32",
        "tf32": False,
        "num_classes": 100,
        "trainable_params": 8192,
        "epochs": published_epochs(dataset, shots),
        "n_train": 1600,
        "n_val": 400,
        "n_test": 2465,
        "version": "0.1.0",
        "zero_shot/acc": 0.6,
        "zero_shot/macro_acc": 0.6,
        "fit_seconds": 1.0,
        "test_seconds": 1.0,
    }


def config_of(results: dict, changed: dict) -> dict:
    """The part of config.yaml that stands beside such results."""
    name, epochs = results["backbone"], results.get("epochs")
    rule = published_epochs(results["dataset"], results["shots"])
    config = {
        "shots": results["shots"],
        "seed": results["seed"],
        "epochs": None if epochs == rule else epochs,
        "backbone": {"model": name, "pretrained": "openai", "name": name, "precision": "fp32", "cache_dir": None},
        "dataset": {"_target_": "reader", "name": results["dataset"], "template": "a photo of a {}.", "epochs": None},
        "method": {"_target_": "method", "name": results.get("method"), "n_ctx": None, "ctx_init": None},
        "optimizer": {"name": "sgd", "lr": 0.002, "momentum": 0.9, "weight_decay": 0.0005},
    }
    return {
        key: value | changed.get(key, {}) if isinstance(value, dict) else changed.get(key, value)
        for key, value in config.items()
    }


def write_evaluation(folder: Path, run: Path, targets: dict[str, float], **changed: Any) -> dict:
    """What coop.evaluate writes of a run: accuracies by target, zero-shot 0.1 below."""
    entries = {
        name: {
            "classes": "all",
            "split": "published",
            "num_classes": 100,
            "n_test": 500,
            "test/acc": acc,
            "test/macro_acc": acc,
            "zero_shot/acc": acc - 0.1,
            "zero_shot/macro_acc": acc - 0.1,
            "test_seconds": 1.0,
        }
        | changed.get(name, {})
        for name, acc in targets.items()
    }
    trained = json.loads((run / "results.json").read_text())
    results = trained | {"task": "evaluate", "run": str(run), "targets": entries}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results))
    return results
