"""Lightning's Trainer as this project uses it: checkpoints, progress, logger."""

import json
import logging
import os
import warnings
from pathlib import Path

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger
from tqdm import tqdm

from coop.errors import CoopError
from coop.results import CHECKPOINT

log = logging.getLogger("coop")

# True, and meant to be so: the CLIP stays in eval mode, a run may go on in its own folder, features need no workers.
for message in (
    "Found .* module.* in eval mode",
    "Checkpoint directory .* exists",
    "The '.*_dataloader' does not have many workers",
    ".*configure_optimizers. returned .None.",
    ".*weights_only.* was set to .True.|.*You defined a .validation_step. but have no .val_dataloader.",
):
    warnings.filterwarnings("ignore", message)
warnings.filterwarnings("ignore", module="pytorch_lightning.utilities._pytree")

# A killed run loses at most this share of its epochs.
CHECKPOINTS_PER_RUN = 50
WANDB_SECONDS = 20


def build_trainer(cfg: DictConfig, run_dir: Path, epochs: int, logger: Logger | None) -> pl.Trainer:
    """A Trainer that checkpoints into `run_dir` and shows one bar for the whole run."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = cfg.trainer.tf32
    checkpoint = ModelCheckpoint(
        dirpath=run_dir,
        filename=CHECKPOINT.removesuffix(".ckpt"),
        every_n_epochs=max(1, epochs // CHECKPOINTS_PER_RUN),
        enable_version_counter=False,
    )
    try:
        return pl.Trainer(
            accelerator=cfg.trainer.accelerator,
            devices=cfg.trainer.devices,
            num_nodes=cfg.trainer.num_nodes,
            strategy=cfg.trainer.strategy,
            precision=cfg.trainer.precision,
            max_epochs=epochs,
            logger=logger or False,
            callbacks=[checkpoint, RunProgress()],
            default_root_dir=run_dir,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            log_every_n_steps=1 if logger is None else 10,
            use_distributed_sampler=False,  # the data module shares batches out itself
        )
    except (TypeError, ValueError, RuntimeError, pl.utilities.exceptions.MisconfigurationException) as error:
        raise CoopError(f"trainer: {error}") from error


def build_logger(cfg: DictConfig, run_dir: Path) -> Logger | None:
    """The logger of `logger=wandb|csv|none`. W&B is offline without a key, and never stops a run."""
    if cfg.logger.kind == "none":
        return None
    if cfg.logger.kind == "csv":
        return CSVLogger(run_dir, name="csv")
    if cfg.logger.kind != "wandb":
        raise CoopError(f"logger.kind={cfg.logger.kind}: allowed are wandb, csv, none")
    for mode in _wandb_modes():
        try:
            return _wandb_logger(cfg, run_dir, mode)
        except Exception as error:  # a dashboard is no reason to lose a run
            log.warning("W&B could not be started in mode %s (%s)", mode, error)
    return CSVLogger(run_dir, name="csv")


def _wandb_modes() -> list[str]:
    """What to try, in this order: the user's own choice, or online if there is a key; then offline."""
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    if chosen := os.environ.get("WANDB_MODE"):
        return [chosen, "offline"]
    return ["online", "offline"] if wandb.login(prompt=False, verify=False) else ["offline"]


def _wandb_logger(cfg: DictConfig, run_dir: Path, mode: str) -> Logger:
    import wandb

    group = cfg.logger.group or f"{cfg.dataset.name}-{cfg.shots}shot-{cfg.method.name}"
    tags = [
        cfg.dataset.name,
        f"{cfg.shots}shot",
        cfg.method.name,
        cfg.backbone.name,
        f"seed{cfg.seed}",
        *cfg.logger.tags,
    ]
    logger = WandbLogger(
        project=cfg.logger.project,
        name=f"{group}-seed{cfg.seed}",
        group=group,
        tags=tags,
        save_dir=run_dir,
        settings=wandb.Settings(mode=mode, console="off", init_timeout=WANDB_SECONDS),
    )
    if pl.utilities.rank_zero_only.rank == 0:
        logger.experiment.config.update(OmegaConf.to_container(cfg, resolve=True), allow_val_change=True)
    return logger


def log_results(logger: Logger | None, results: dict, prompt_file: Path) -> None:
    """Final figures into the logger; with W&B into the run's summary, the prompt as an artifact."""
    try:
        _log_results(logger, results, prompt_file)
    except Exception as error:  # the results are on disk by now
        log.warning("the final figures could not be logged (%s)", error)


def _log_results(logger: Logger | None, results: dict, prompt_file: Path) -> None:
    figures = {
        key: value for key, value in results.items() if isinstance(value, int | float) and not isinstance(value, bool)
    }
    if isinstance(logger, WandbLogger):
        import wandb

        logger.experiment.summary.update(figures)
        artifact = wandb.Artifact(
            f"prompt-{logger.experiment.id}", type="prompt", metadata=json.loads(json.dumps(results))
        )
        artifact.add_file(str(prompt_file))
        logger.experiment.log_artifact(artifact)
        wandb.finish()
    elif logger is not None:
        logger.log_metrics({key: value for key, value in figures.items() if "/" in key})
        logger.save()


class RunProgress(Callback):
    """One progress bar over all steps of a run."""

    def on_train_start(self, trainer: pl.Trainer, *_) -> None:
        total = trainer.max_epochs * trainer.num_training_batches
        hidden = not trainer.is_global_zero
        self.bar = tqdm(total=total, initial=trainer.global_step, desc="training", unit="step", disable=hidden)

    def on_train_batch_end(self, *_) -> None:
        self.bar.update(1)

    def on_train_epoch_end(self, trainer: pl.Trainer, *_) -> None:
        shown = {key: f"{value:.3f}" for key, value in trainer.progress_bar_metrics.items()}
        self.bar.set_postfix(epoch=f"{trainer.current_epoch + 1}/{trainer.max_epochs}", **shown, refresh=False)

    def on_train_end(self, *_) -> None:
        self.bar.close()
