"""python -m coop.evaluate run=RUN_DIR: a trained prompt on any data sets, zero-shot beside it."""

from coop.cli.hydra_app import run_with_hydra

if __name__ == "__main__":  # before the imports below: --help and most mistakes need no torch
    run_with_hydra("evaluate")

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

import coop
from coop.config import autocast_dtype, check_dataset
from coop.data.features import FeatureExtractor
from coop.errors import CoopError
from coop.evaluation.predictions import OOD, OWN, read_predictions, write_predictions
from coop.evaluation.targets import (
    Target,
    across_classes,
    check_transfer,
    new_classes,
    read_targets,
    target_configs,
    test_targets,
)
from coop.runs import CONFIG, PREDICTIONS, PROMPT, RESULTS
from coop.runs.folder import accuracy_rows, claim_for_evaluation, closing_table, load_config, read_results
from coop.runs.hub import local_folder
from coop.runs.prompt import load_prompt
from coop.runs.trained import Trained, load_trained
from coop.runs.trust import check_offered
from coop.system.files import write_json


def main(cfg: DictConfig) -> None:
    """Evaluate as a checked config says, and write."""
    out_dir, run_dir = Path(HydraConfig.get().runtime.output_dir), local_folder(cfg.run)
    claim_for_evaluation(out_dir, run_dir)
    load_prompt(run_dir / PROMPT)  # a folder that is not a run's shows up before any data set is read
    run_cfg, trained_results = load_config(run_dir), read_results(run_dir)
    cfg.seed = run_cfg.seed if cfg.seed is None else cfg.seed
    targets = read_targets(chosen_datasets(cfg, run_cfg, run_dir), cfg.data_root or run_cfg.data_root, run_cfg.seed)
    trained = load_trained(run_dir, cfg.backbone, cfg.accelerator)
    scores, sets = evaluate(cfg, trained, targets, new_classes(trained_results))
    results = trained_results | {"task": "evaluate", "run": str(run_dir), "version": coop.__version__}
    results["targets"] = scores
    results |= across_classes(results, base_predictions(run_dir, trained_results, sets), sets.get(OOD))
    write_predictions(out_dir, sets)
    write_json(out_dir / RESULTS, results)
    show(results, out_dir)


def chosen_datasets(cfg: DictConfig, run_cfg: DictConfig, run_dir: Path) -> dict[str, DictConfig]:
    """The configs of the data sets to evaluate on, by name: `targets`, else `dataset`, else the run's own."""
    if cfg.targets and cfg.dataset:
        raise CoopError(f"targets={list(cfg.targets)} beside dataset={cfg.dataset.get('name')}: give one of the two")
    if not cfg.dataset and any(text.startswith(":") for text in cfg.targets or [":all"]):
        check_offered("dataset", run_cfg.dataset, run_dir / CONFIG)
    if cfg.targets:
        return target_configs(cfg.targets, run_cfg.dataset, cfg.seed)
    node = cfg.dataset or run_cfg.dataset
    check_dataset(node)
    return {node.name: node}


def base_predictions(run_dir: Path, results: dict, sets: dict[str, dict]) -> dict | None:
    """What is predicted for the test images of the classes that a run learned on: here, or when it was trained."""
    here = sets.get(f"targets/{results['dataset']}:{results['classes']}")
    return here or ((run_dir / PREDICTIONS).is_file() and read_predictions(run_dir).get(OWN)) or None


def evaluate(
    cfg: DictConfig, trained: Trained, targets: list[Target], ood: str | None
) -> tuple[dict[str, dict], dict[str, dict]]:
    """What `test_targets` returns for a run. Raises CoopError where what was learned means nothing for a data set."""
    method, run_cfg, prompt = trained
    for target in targets:
        check_transfer(method, target, prompt.metadata["dataset"])
    clip, autocast = method.clip, autocast_dtype(run_cfg.trainer.precision)
    cache = {"cached": cfg.features == "cached", "cache_dir": cfg.cache_dir}
    extractor = FeatureExtractor(clip, clip.device, cfg.num_workers, autocast, kind=method.feature_kind, **cache)
    frozen = {t.name: extractor(t.splits.test, t.splits.preprocess, t.name) for t in targets}
    return test_targets(method, run_cfg.method, targets, extractor, frozen, ood)


def show(results: dict, out_dir: Path) -> None:
    """The closing table: each data set, zero-shot and the method."""
    title = (
        f"{results['run']}: {results['method']} learned on {results['dataset']}, {results['shots']} shots, "
        f"seed {results['seed']}, {results['backbone']}"
    )
    closing_table(title, accuracy_rows(results), {"results": out_dir / RESULTS})
