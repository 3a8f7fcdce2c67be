"""Lightning's Trainer as this project uses it: checkpoints, progress."""

import io
import logging
import os
import time
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.plugins.io import TorchCheckpointIO

from coop.data.datamodule import FewShotData
from coop.errors import CoopError
from coop.methods import Method
from coop.runs import CHECKPOINT
from coop.runs.checkpoint import RUN, read_checkpoint, restoring
from coop.runs.folder import decisive, recorded
from coop.system import stop
from coop.system.devices import set_tf32
from coop.system.files import write_atomically
from coop.system.memory import start_peak
from coop.system.progress import progress
from coop.training.history import History
from coop.training.loggers import build_logger
from coop.training.module import LitClassifier

log = logging.getLogger("coop")

# True, and meant to be so: the CLIP stays in eval mode, a run may go on in its own folder, features need no workers,
# ImageNet has no validation images, a login node has srun, a batch may be the whole epoch.
for message in (
    "Found .* module.* in eval mode",
    "Checkpoint directory .* exists",
    "The '.*_dataloader' does not have many workers",
    ".*configure_optimizers. returned .None.",
    ".*weights_only.* was set to .True.",
    ".*You defined a .validation_step. but have no .val_dataloader.",
    "Total length of .list. across ranks is zero",
    "The .srun. command is available",
    "The number of training batches .* is smaller than the logging interval",
):
    warnings.filterwarnings("ignore", message)
warnings.filterwarnings("ignore", module="pytorch_lightning.utilities._pytree")

# An interrupted run loses at most this share of its epochs.
CHECKPOINTS_PER_RUN = 50


class Trainer(pl.Trainer):
    """Stops after a budget of steps. Lightning's `max_steps` cannot be resumed: the end of the checkpoint's epoch comes
    a second time.
    """

    def __init__(self, steps: int, **options: Any):
        super().__init__(**options)
        self.steps = steps  # in all; -1 for those of the epochs

    @property
    def estimated_stepping_batches(self) -> int | float:
        whole = super().estimated_stepping_batches
        return whole if self.steps == -1 else min(self.steps, whole)


class StopAfterSteps(Callback):
    """Ends training after the Trainer's budget of steps."""

    def on_train_batch_end(self, trainer: Trainer, *_) -> None:
        trainer.should_stop = trainer.global_step == trainer.steps


def build_trainer(cfg: DictConfig, run_dir: Path, epochs: int, steps: int) -> Trainer:
    """A Trainer that checkpoints into `run_dir`, logs, and shows one bar for the whole run.

    Raises:
        CoopError: Lightning does not take the keys of `trainer`.
    """
    logger = build_logger(cfg, run_dir)
    set_tf32(cfg.trainer.tf32)
    checkpoint = ModelCheckpoint(
        dirpath=run_dir,
        filename=CHECKPOINT.removesuffix(".ckpt"),
        every_n_epochs=checkpoint_interval(epochs),
        enable_version_counter=False,
        save_on_train_epoch_end=True,  # after all other callbacks: what they keep is in it
    )
    try:
        return Trainer(
            steps,
            **{key: cfg.trainer[key] for key in ("accelerator", "devices", "num_nodes", "strategy", "precision")},
            max_epochs=epochs,
            logger=logger or False,
            callbacks=[checkpoint, RunProgress(), StopAtOnce(), StopAfterSteps(), History()],
            plugins=[AtomicCheckpointIO(decisive(recorded(cfg))), *cluster_environment(cfg.trainer)],
            default_root_dir=run_dir,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            log_every_n_steps=0 if logger is None else 10,  # each reads the loss back from the device
            use_distributed_sampler=False,  # the data module shares batches out itself
        )
    except (TypeError, ValueError, RuntimeError, pl.utilities.exceptions.MisconfigurationException) as error:
        raise CoopError(f"trainer: {error}") from error


def fit(trainer: Trainer, method: Method, data: FewShotData, run_dir: Path, cfg: DictConfig) -> float:
    """Encode what has fixed views, then train; from the checkpoint in the run's folder, if there is one.

    Afterwards the method is where it was trained, and what it chooses on validation images is chosen.

    Returns:
        The seconds this took, without those of encoding.

    Raises:
        CoopError: a checkpoint that is damaged or not this run's, or an image that cannot be read.
    """
    device = trainer.strategy.root_device
    start_peak(device)
    started = time.perf_counter() - data.extractor.seconds
    if method.trained_in_steps:
        if cfg.trainer.compile:
            method.compile()
        module = LitClassifier(method, cfg.optimizer, trainer.max_epochs)
        checkpoint = run_dir / CHECKPOINT if (run_dir / CHECKPOINT).exists() else None
        if checkpoint:
            content = read_checkpoint(checkpoint, decisive(recorded(cfg)))
            log.info("%s: resumed after epoch %d of %d", run_dir, content["epoch"] + 1, trainer.max_epochs)
        with restoring(module, checkpoint):
            trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
        module.to(device)  # method and CLIP; Lightning leaves them on the CPU
    else:
        data.setup("fit")
        method.to(device)
        method.clip.to(device)
        method.prepare(data.labeled)
    method.select(data.labeled)
    return time.perf_counter() - started - data.extractor.seconds


def cluster_environment(node: DictConfig) -> list[LightningEnvironment]:
    """No environment but Lightning's own where no scheduler has started the other processes of a run.

    Lightning takes whatever runs inside a job of SLURM for one of as many processes as the job has tasks.
    """
    one_device = node.num_nodes == 1 and str(node.devices) == "1"
    return [LightningEnvironment()] if one_device or os.environ.get("SLURM_NTASKS") == "1" else []


def checkpoint_interval(epochs: int) -> int:
    """Epochs between checkpoints: a divisor, so that the last epoch is always on disk."""
    return next(n for n in range(max(1, epochs // CHECKPOINTS_PER_RUN), 0, -1) if epochs % n == 0)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and moves it there.

    Lightning's own comes from the folder for temporary files; where that is another disk, a kill leaves half a file.
    """

    def __init__(self, run: dict[str, Any] | None = None):
        self.run = run  # the decisive part of the run's config, kept in the checkpoint

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        content = io.BytesIO()
        torch.save({**checkpoint, RUN: self.run}, content)
        write_atomically(Path(path), content.getvalue())


class StopAtOnce(Callback):
    """Takes the place of Lightning's handler of SIGTERM, which goes on to the end of a batch, and between several
    processes waits for all of them.
    """

    def on_train_start(self, *_) -> None:
        if stop.active():
            stop.handle()


class RunProgress(Callback):
    """One progress bar over all steps of a run."""

    def on_train_start(self, trainer: pl.Trainer, *_) -> None:
        self.epoch, self.metrics = None, {}
        self.bar = progress(
            total=trainer.estimated_stepping_batches,
            initial=trainer.global_step,
            desc="training",
            unit="step",
            figures=self._figures,
            hidden=not trainer.is_global_zero,
        )

    def on_train_batch_end(self, *_) -> None:
        self.bar.update(1)

    def on_train_epoch_end(self, trainer: pl.Trainer, *_) -> None:
        self.epoch = f"{trainer.current_epoch + 1}/{trainer.max_epochs}"
        self.metrics = dict(trainer.callback_metrics)  # tensors: reading them would wait for the device

    def _figures(self) -> dict[str, str]:
        shown = {key: f"{float(value):.3f}" for key, value in self.metrics.items()}
        return {"epoch": self.epoch, **shown} if self.epoch else {}

    def on_train_end(self, *_) -> None:
        self.bar.close()

    def on_exception(self, *_) -> None:
        if hasattr(self, "bar"):
            self.bar.close()
