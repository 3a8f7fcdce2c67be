"""python -m coop.evaluate run=RUN_DIR: a trained prompt on any data sets, zero-shot beside it."""

import difflib
import logging
import time
from collections.abc import Sequence
from pathlib import Path

import pytorch_lightning as pl
from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from pytorch_lightning.utilities.exceptions import MisconfigurationException

import coop
from coop.clip.backbone import FrozenCLIP
from coop.config import (
    AUTOCAST,
    EvaluateConfig,
    build_method,
    check_dataset,
    check_features,
    check_keys,
    check_workers,
    launch,
    read_dataset,
)
from coop.data.features import FeatureExtractor
from coop.data.fewshot import Splits, sample
from coop.errors import CoopError
from coop.files import write_json
from coop.methods import Method
from coop.methods.zero_shot import ZeroShot
from coop.results import (
    PROMPT,
    RESULTS,
    Prompt,
    check_backbone,
    closing_table,
    load_config,
    load_into,
    load_prompt,
    read_results,
)
from coop.scoring import features_for, score

log = logging.getLogger("coop")


def main(cfg: DictConfig) -> None:
    """Check, evaluate, write."""
    check_keys(cfg, EvaluateConfig)
    check_features(cfg.features)
    check_workers(cfg.num_workers)
    out_dir, run_dir = Path(HydraConfig.get().runtime.output_dir), Path(cfg.run).expanduser()
    if out_dir.resolve() == run_dir.resolve():
        raise CoopError(f"hydra.run.dir={out_dir}: is the run's own folder, whose results would be overwritten")
    prompt, run_cfg, trained_results = load_prompt(run_dir / PROMPT), load_config(run_dir), read_results(run_dir)
    cfg.seed = run_cfg.seed if cfg.seed is None else cfg.seed
    targets = evaluate(cfg, run_dir, run_cfg, prompt, chosen_datasets(cfg, run_cfg))
    results = {
        **trained_results,
        "task": "evaluate",
        "run": str(run_dir),
        "version": coop.__version__,
        "targets": targets,
    }
    write_json(out_dir / RESULTS, results)
    show(results, out_dir)


def chosen_datasets(cfg: DictConfig, run_cfg: DictConfig) -> list[DictConfig]:
    """The configs of the data sets to evaluate on: `targets`, else `dataset`, else the run's own.

    Raises:
        CoopError: an unknown name, both `targets` and `dataset`, or a config that its reader does not accept.
    """
    if cfg.targets and cfg.dataset:
        raise CoopError(f"targets={list(cfg.targets)} beside dataset={cfg.dataset.get('name')}: give one of the two")
    if cfg.targets:
        known = GlobalHydra.instance().config_loader().get_group_options("dataset")
        for name in set(cfg.targets) - set(known):
            near = difflib.get_close_matches(name, known)
            raise CoopError(f"targets: there is no data set {name}; near matches: {', '.join(near) or 'none'}")
        nodes = [compose(f"dataset/{name}", overrides=[f"+seed={cfg.seed}"]).dataset for name in cfg.targets]
    else:
        nodes = [cfg.dataset or run_cfg.dataset]
    for node in nodes:
        check_dataset(node)
    return nodes


def evaluate(
    cfg: DictConfig, run_dir: Path, run_cfg: DictConfig, prompt: Prompt, datasets: Sequence[DictConfig]
) -> dict[str, dict]:
    """Accuracies of a trained method and of zero-shot on each data set, by its name.

    Raises:
        CoopError: a prompt of another backbone; a class-specific context and other classes; missing data.
    """
    data_root = cfg.data_root or run_cfg.data_root
    splits = [sample(read_dataset(node, data_root), -1, run_cfg.seed, node.classes) for node in datasets]
    clip = FrozenCLIP.load(**(cfg.backbone or run_cfg.backbone))
    check_backbone(prompt, clip, run_dir / PROMPT)
    device = device_of(cfg.accelerator)
    clip.to(device)
    cached, precision = cfg.features == "cached", run_cfg.trainer.precision
    extractor = FeatureExtractor(clip, device, cfg.num_workers, AUTOCAST[precision], cached, cfg.cache_dir)
    methods = [
        trained(run_cfg, prompt, clip, node, split, run_dir) for node, split in zip(datasets, splits, strict=True)
    ]
    return {
        node.name: score_target(method, extractor, node, split)
        for method, node, split in zip(methods, datasets, splits, strict=True)
    }


def trained(
    run_cfg: DictConfig, prompt: Prompt, clip: FrozenCLIP, node: DictConfig, split: Splits, run_dir: Path
) -> Method:
    """The run's method for the classes of one data set, with its trained tensors.

    Raises:
        CoopError: the trained tensors belong to other classes.
    """
    method = build_method(run_cfg.method, clip, split.classnames)
    learned = prompt.metadata["classnames"]
    if not method.transfers_to_other_classes and list(split.classnames) != learned:
        unseen = [name for name in split.classnames if name not in learned]
        raise CoopError(
            f"{node.name}: its classes are not those that this run learned on ({prompt.metadata['dataset']}; "
            f"{len(unseen)} were never seen: {', '.join(unseen[:5])}). What it learned is class-specific and "
            "means nothing for others; a unified context (method.class_specific=false) moves"
        )
    load_into(method.to(clip.device), prompt, run_dir / PROMPT)
    return method


def score_target(method: Method, extractor: FeatureExtractor, node: DictConfig, split: Splits) -> dict:
    """One entry of `targets`."""
    started = time.perf_counter()
    features = extractor(split.test, split.preprocess, node.name)
    labels = split.labels("test")
    zero_shot = ZeroShot(method.clip, split.classnames, template=node.template)
    entry = {
        "classes": node.classes,
        "split": split.origin,
        "num_classes": len(split.classnames),
        "n_test": len(split.test),
    }
    for name, scored in (("test", method), ("zero_shot", zero_shot)):
        seen = features_for(scored, extractor, split, "test", features)
        entry |= {f"{name}/{key}": value for key, value in score(scored, seen, labels).items()}
    return entry | {"test_seconds": time.perf_counter() - started}


def device_of(accelerator: str):
    """The torch device of Lightning's name for it. Raises CoopError for a name that it does not know."""
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    try:
        return pl.Trainer(accelerator=accelerator, devices=1, **quiet).strategy.root_device
    except (ValueError, RuntimeError, MisconfigurationException) as error:
        raise CoopError(f"accelerator={accelerator}: {error}") from error


def show(results: dict, out_dir: Path) -> None:
    rows = []
    for name, entry in results["targets"].items():
        for label, key in (("zero-shot", "zero_shot"), (results["method"], "test")):
            rows.append((f"{name}: {label}", {part: entry[f"{key}/{part}"] for part in ("acc", "macro_acc")}))
    title = (
        f"{results['run']}: {results['method']} learned on {results['dataset']}, {results['shots']} shots, "
        f"seed {results['seed']}, {results['backbone']}"
    )
    closing_table(title, rows, {"results": out_dir / RESULTS})


if __name__ == "__main__":
    launch(main, "evaluate")
