"""Devices by Lightning's names, and what they may round."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from coop.errors import CoopError


def set_tf32(allowed: bool) -> None:
    """Whether NVIDIA GPUs may round the factors of 32-bit products to 10 bits of mantissa, in this process."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


def device_of(accelerator: str) -> torch.device:
    """The torch device of Lightning's name for it. Raises CoopError for a name that it does not know."""
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    try:
        with quiet_lightning():
            return pl.Trainer(accelerator=accelerator, devices=1, **quiet).strategy.root_device
    except (ValueError, RuntimeError, MisconfigurationException) as error:
        raise CoopError(f"accelerator={accelerator}: {error}") from error


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Without Lightning's lines about which devices there are, as the commands are."""
    lightning = logging.getLogger("pytorch_lightning")
    level = lightning.level
    lightning.setLevel(logging.WARNING)
    try:
        yield
    finally:
        lightning.setLevel(level)
