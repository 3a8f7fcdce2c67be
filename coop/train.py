"""python -m coop.train: few-shot training of a method on a frozen CLIP, tested with the last epoch's weights."""

from coop.cli.hydra_app import run_with_hydra

if __name__ == "__main__":  # before the imports below: --help and most mistakes need no torch
    run_with_hydra("train")

import logging
from collections.abc import Sequence
from pathlib import Path

import pytorch_lightning as pl
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from coop.clip.backbone import FrozenCLIP
from coop.config import budget, build_method
from coop.data.datamodule import FewShotData, build_data
from coop.data.readers import read_splits
from coop.data.sampling import Splits
from coop.evaluation.outcome import cost, describe, evaluate, write_run
from coop.evaluation.targets import Target, check_transfer, read_targets, target_configs
from coop.methods import Method
from coop.runs import PROMPT, RESULTS
from coop.runs.folder import claim_folder, read_finished, show_run
from coop.runs.prompt import save_prompt
from coop.runs.sweep import check_search, exclusive, in_sweep
from coop.training.trainer import build_trainer, fit

log = logging.getLogger("coop")


def main(cfg: DictConfig, show: bool = True) -> float | None:
    """Run a checked config, unless its folder holds the result; the validation accuracy, which a search goes by."""
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
    if show and pl.utilities.rank_zero_only.rank == 0:
        show_run(results, run_dir)
    return results["val/acc"]


def train(cfg: DictConfig, run_dir: Path) -> dict:
    """Data, CLIP, method, fit, evaluate, write: one run, resumed where a checkpoint lies in its folder; its results."""
    splits = read_splits(cfg)
    check_search(bool(splits.val))
    targets = read_targets(target_configs(cfg.targets, cfg.dataset, cfg.seed), cfg.data_root, cfg.seed)
    method, data, trainer, seconds = learn(cfg, splits, run_dir, targets)
    scores, predicted = evaluate(cfg, method, data, targets)
    results = describe(cfg, method, splits, trainer.max_epochs) | scores | cost(trainer, data, seconds)
    if trainer.is_global_zero:
        write_run(run_dir, results, method, data, predicted, trainer)
    return results


def learn(
    cfg: DictConfig, splits: Splits, run_dir: Path, targets: Sequence[Target] = ()
) -> tuple[Method, FewShotData, pl.Trainer, float]:
    """Load CLIP, build and fit the method, and save prompt.safetensors (coop.sklearn calls this too).

    Returns:
        The trained method, the data and the Trainer that it was trained with, and the seconds that took.
    """
    clip = FrozenCLIP.load(**cfg.backbone)

    pl.seed_everything(cfg.seed, verbose=False)
    method = build_method(cfg.method, clip, splits.classnames)
    for target in targets:
        check_transfer(method, target, cfg.dataset.name)
    clip.tokenize([cfg.dataset.template.format(name) for name in method.classnames])  # too long a prompt shows up here

    epochs, steps = budget(cfg, len(splits.train)) if method.trained_in_steps else (0, -1)
    trainer = build_trainer(cfg, run_dir, epochs, steps)
    data = build_data(cfg, splits, {t.name: t.splits for t in targets}, method, trainer.strategy.root_device)
    seconds = fit(trainer, method, data, run_dir, cfg)  # encodes all images with a fixed view first
    if trainer.is_global_zero:
        save_prompt(run_dir / PROMPT, method, cfg, splits.classnames)
    return method, data, trainer, seconds
