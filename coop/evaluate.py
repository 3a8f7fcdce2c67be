"""python -m coop.evaluate run=RUN_DIR: a trained prompt on any data sets, zero-shot beside it."""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

import coop
from coop.cli.hydra_app import launch
from coop.clip.loading import check_source
from coop.config import AUTOCAST, EvaluateConfig, check_dataset, check_schema
from coop.data.features import FeatureExtractor
from coop.errors import CoopError
from coop.evaluation.targets import Target, base_to_new, check_transfer, read_targets, target_configs, test_targets
from coop.runs.folder import (
    CONFIG,
    PROMPT,
    RESULTS,
    accuracy_rows,
    claim_for_evaluation,
    closing_table,
    load_config,
    load_prompt,
    read_results,
)
from coop.runs.trained import Trained, load_trained
from coop.runs.trust import check_offered
from coop.system.files import write_json


def main(cfg: DictConfig) -> None:
    """Check, evaluate, write."""
    check_schema(cfg, EvaluateConfig)
    if cfg.backbone is not None:
        check_source(cfg.backbone.model, cfg.backbone.pretrained)
    out_dir, run_dir = Path(HydraConfig.get().runtime.output_dir), Path(cfg.run).expanduser()
    claim_for_evaluation(out_dir, run_dir)
    load_prompt(run_dir / PROMPT)  # a folder that is not a run's shows up before any data set is read
    run_cfg, trained_results = load_config(run_dir), read_results(run_dir)
    cfg.seed = run_cfg.seed if cfg.seed is None else cfg.seed
    targets = read_targets(chosen_datasets(cfg, run_cfg), cfg.data_root or run_cfg.data_root, run_cfg.seed)
    trained = load_trained(run_dir, cfg.backbone, cfg.accelerator)
    results = {
        **trained_results,
        "task": "evaluate",
        "run": str(run_dir),
        "version": coop.__version__,
        "targets": evaluate(cfg, trained, targets),
    }
    results |= base_to_new(results)
    write_json(out_dir / RESULTS, results)
    show(results, out_dir)


def chosen_datasets(cfg: DictConfig, run_cfg: DictConfig) -> dict[str, DictConfig]:
    """The configs of the data sets to evaluate on, by name: `targets`, else `dataset`, else the run's own.

    Raises:
        CoopError: an unknown name, both `targets` and `dataset`, or a config that its reader does not accept.
    """
    if cfg.targets and cfg.dataset:
        raise CoopError(f"targets={list(cfg.targets)} beside dataset={cfg.dataset.get('name')}: give one of the two")
    if not cfg.dataset and any(text.startswith(":") for text in cfg.targets or [":all"]):
        check_offered("dataset", run_cfg.dataset, Path(cfg.run) / CONFIG)
    if cfg.targets:
        return target_configs(cfg.targets, run_cfg.dataset, cfg.seed)
    node = cfg.dataset or run_cfg.dataset
    check_dataset(node)
    return {node.name: node}


def evaluate(cfg: DictConfig, trained: Trained, targets: list[Target]) -> dict[str, dict]:
    """Accuracies of a trained method and of zero-shot on each data set, by its name.

    Raises:
        CoopError: what was learned means nothing for the classes of a data set; an image that cannot be read.
    """
    method, run_cfg, prompt = trained
    for target in targets:
        check_transfer(method, target, prompt.metadata["dataset"])
    clip, autocast = method.clip, AUTOCAST[run_cfg.trainer.precision]
    extractor = FeatureExtractor(
        clip,
        clip.device,
        cfg.num_workers,
        autocast,
        cached=cfg.features == "cached",
        cache_dir=cfg.cache_dir,
        kind=method.feature_kind,
    )
    frozen = {t.name: extractor(t.splits.test, t.splits.preprocess, t.name) for t in targets}
    return test_targets(method, run_cfg.method, targets, extractor, frozen)


def show(results: dict, out_dir: Path) -> None:
    """The closing table: each data set, zero-shot and the method."""
    title = (
        f"{results['run']}: {results['method']} learned on {results['dataset']}, {results['shots']} shots, "
        f"seed {results['seed']}, {results['backbone']}"
    )
    closing_table(title, accuracy_rows(results), {"results": out_dir / RESULTS})


if __name__ == "__main__":
    launch(main, "evaluate")
