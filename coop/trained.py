"""A finished run, ready for use: its method with what it learned."""

from pathlib import Path
from typing import NamedTuple

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from coop.clip.backbone import FrozenCLIP
from coop.config import build_method
from coop.errors import CoopError
from coop.methods import Method
from coop.results import PROMPT, Prompt, check_backbone, load_config, load_into, load_prompt
from coop.trainer import set_tf32


class Trained(NamedTuple):
    """A method for the classes it was trained with, in eval mode, on its device; the run's config; its prompt file."""

    method: Method
    cfg: DictConfig
    prompt: Prompt


def load_trained(run_dir: Path, backbone: DictConfig | None = None, accelerator: str = "auto") -> Trained:
    """Load a run's backbone and what the run learned; this process computes with the run's tf32 from now on.

    Args:
        run_dir: the folder of a finished run.
        backbone: where to load the backbone from, if not from where the run did.
        accelerator: Lightning's name of a device.

    Raises:
        CoopError: not the folder of a run, or another backbone than the run's.
    """
    prompt, cfg = load_prompt(run_dir / PROMPT), load_config(run_dir)
    device = device_of(accelerator)
    set_tf32(cfg.trainer.tf32)
    clip = FrozenCLIP.load(**(backbone or cfg.backbone))
    check_backbone(prompt, clip, run_dir / PROMPT)
    clip.to(device)
    method = build_method(cfg.method, clip, prompt.metadata["classnames"]).to(device)
    load_into(method, prompt, run_dir / PROMPT)
    return Trained(method.eval(), cfg, prompt)


def device_of(accelerator: str) -> torch.device:
    """The torch device of Lightning's name for it. Raises CoopError for a name that it does not know."""
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    try:
        return pl.Trainer(accelerator=accelerator, devices=1, **quiet).strategy.root_device
    except (ValueError, RuntimeError, MisconfigurationException) as error:
        raise CoopError(f"accelerator={accelerator}: {error}") from error
