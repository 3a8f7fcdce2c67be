"""python -m coop.train: few-shot training of a method on a frozen CLIP, tested with the last epoch's weights."""

import logging
import time
from pathlib import Path

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from coop.cli.hydra_app import launch
from coop.clip.backbone import FrozenCLIP
from coop.config import AUTOCAST, budget, build_method, check
from coop.data.datamodule import FewShotData
from coop.data.features import FeatureExtractor
from coop.data.manifest import apply_manifest
from coop.data.readers import read_dataset
from coop.data.sampling import Splits, sample
from coop.errors import CoopError
from coop.evaluation.outcome import describe, describe_run, test
from coop.evaluation.targets import Target, check_transfer, harmonic_mean, read_targets, target_configs, test_targets
from coop.methods import Method
from coop.runs.checkpoint import read_checkpoint, restoring
from coop.runs.folder import (
    CHECKPOINT,
    PROMPT,
    RESULTS,
    accuracy_rows,
    claim_folder,
    closing_table,
    decisive,
    read_finished,
    recorded,
    save_prompt,
)
from coop.runs.sweep import check_search, exclusive, in_sweep
from coop.system.devices import set_tf32
from coop.system.files import write_json
from coop.training.history import History
from coop.training.loggers import build_logger, log_results
from coop.training.module import LitClassifier
from coop.training.trainer import build_trainer

log = logging.getLogger("coop")


def main(cfg: DictConfig) -> float | None:
    """Check the config, then run it, unless its folder already holds the result.

    Returns:
        The validation accuracy: what a sweeper may optimise.
    """
    check(cfg)
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    with exclusive(run_dir):
        claim_folder(run_dir, cfg)
        if (run_dir / RESULTS).exists():
            results = read_finished(run_dir)
            log.info("%s: already finished with this config, nothing is computed again", run_dir)
            if in_sweep():  # its table comes at the end
                return results["val/acc"]
        else:
            results = train(cfg, run_dir)
    if pl.utilities.rank_zero_only.rank == 0:
        show(results, run_dir)
    return results["val/acc"]


def train(cfg: DictConfig, run_dir: Path) -> dict:
    """Build, fit, test and write one run; a checkpoint in its folder is taken up.

    Returns:
        What results.json holds.

    Raises:
        CoopError: whatever the user can mend: data, weights, prompts that do not fit.
    """
    splits = sampled_splits(cfg)
    if not splits.train:
        raise CoopError(
            f"dataset={cfg.dataset.name}: has no training images; train on another, then use it with coop.evaluate"
        )
    check_search(bool(splits.val))
    targets = read_targets(target_configs(cfg.targets, cfg.dataset, cfg.seed), cfg.data_root, cfg.seed)
    clip = FrozenCLIP.load(**cfg.backbone)
    pl.seed_everything(cfg.seed, verbose=False)
    method = build_method(cfg.method, clip, splits.classnames)
    for target in targets:
        check_transfer(method, target, cfg.dataset.name)
    clip.tokenize([cfg.dataset.template.format(name) for name in method.classnames])  # too long a prompt shows up here
    epochs, steps = budget(cfg, len(splits.train)) if method.trained_in_steps else (0, -1)

    logger, history = build_logger(cfg, run_dir), History()
    set_tf32(cfg.trainer.tf32)
    trainer = build_trainer(cfg, run_dir, epochs, steps, logger, history)
    data = build_data(cfg, splits, targets, method, trainer.strategy.root_device)
    if cfg.trainer.compile:
        method.compile()
    started = time.perf_counter()
    model = LitClassifier(clip, method, cfg.optimizer, epochs)
    fit(trainer, model, data, run_dir, cfg)
    model.to(trainer.strategy.root_device)  # Lightning leaves it on the CPU
    method.select(data.labelled)
    seconds = time.perf_counter() - started
    if trainer.is_global_zero:
        save_prompt(run_dir / PROMPT, method, cfg, splits.classnames)

    scores, predictions = test(method, data, cfg.dataset.template)
    results = describe(cfg, method, splits, epochs) | scores | {"fit_seconds": seconds}
    if targets:
        results["targets"] = test_targets(method, cfg.method, targets, data.extractor, data.target_features)
        results |= harmonic_mean(results)
    if trainer.is_global_zero:
        describe_run(run_dir, method, data, predictions, history)
        write_json(run_dir / RESULTS, results)  # its presence says that the run is finished
        log_results(logger, results, run_dir)
    return results


def build_data(
    cfg: DictConfig, splits: Splits, targets: list[Target], method: Method, device: torch.device
) -> FewShotData:
    """The batches and features of a run."""
    extractor = FeatureExtractor(
        method.clip,
        device,
        cfg.num_workers,
        autocast=AUTOCAST[cfg.trainer.precision],
        cached=cfg.features == "cached",
        cache_dir=cfg.cache_dir,
        dataset=cfg.dataset.name,
        kind=method.feature_kind,
    )
    return FewShotData(
        splits,
        extractor,
        cfg.seed,
        cfg.augmentation,
        cfg.batch_size,
        cfg.num_workers,
        with_images=method.needs_images,
        with_teacher=method.needs_teacher,
        view_sampling=cfg.view_sampling,
        validation=cfg.validation == "choose",
        targets={target.name: target.splits for target in targets},
    )


def fit(trainer: pl.Trainer, model: LitClassifier, data: FewShotData, run_dir: Path, cfg: DictConfig) -> None:
    """Train; from the checkpoint in the run's folder, if there is one.

    Raises:
        CoopError: a checkpoint that is damaged or not this run's.
    """
    checkpoint = run_dir / CHECKPOINT
    resume = checkpoint if checkpoint.exists() else None
    if resume:
        content = read_checkpoint(resume, decisive(recorded(cfg)))
        log.info("%s: resumed after epoch %d of %d", run_dir, content["epoch"] + 1, trainer.max_epochs)
    with restoring(model, resume):
        trainer.fit(model, data, ckpt_path=resume, weights_only=True)


def sampled_splits(cfg: DictConfig) -> Splits:
    """The images of a run: sampled by the protocol, or as a manifest lists them."""
    whole = read_dataset(cfg.dataset, cfg.data_root)
    if cfg.dataset.manifest:
        return apply_manifest(whole, cfg.dataset.manifest, shots=cfg.shots, classes=cfg.dataset.classes)
    return sample(whole, cfg.shots, cfg.seed, cfg.dataset.classes)


def show(results: dict, run_dir: Path) -> None:
    """The closing table: zero-shot, the method, and where everything lies."""
    title = (
        f"{results['dataset']}, {results['shots']} shots, seed {results['seed']}, {results['backbone']}: "
        f"{results['n_test']} test images of {results['num_classes']} classes (split: {results['split']}, "
        f"augmentation: {results['augmentation']}); {results['trainable_params']:,} trained parameters, "
        f"{results['epochs']} epochs, {results['fit_seconds']:.0f} s"
    )
    files = {"results": run_dir / RESULTS, "prompt": run_dir / PROMPT, "run": run_dir}
    closing_table(title, accuracy_rows(results), files)


if __name__ == "__main__":
    launch(main, "train")
