"""A finished run, ready for use: its method with what it learned."""

from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig

from coop.clip.backbone import FrozenCLIP
from coop.config import BackboneConfig, build_method, check_method
from coop.errors import CoopError
from coop.methods import Method
from coop.runs import CONFIG, PROMPT
from coop.runs.folder import load_config
from coop.runs.prompt import Prompt, load_prompt
from coop.runs.trust import check_offered, check_weights
from coop.system.devices import device_of, set_tf32


class Trained(NamedTuple):
    """A method for the classes it was trained with, in eval mode, on its device; the run's config; its prompt file."""

    method: Method
    cfg: DictConfig
    prompt: Prompt


def load_trained(
    run_dir: Path, backbone: DictConfig | None = None, accelerator: str = "auto", config_dir: str | None = None
) -> Trained:
    """Load a run's backbone and what the run learned; this process computes with the run's tf32 from now on.

    Args:
        run_dir: the folder of a finished run.
        backbone: where to load the backbone from, if not from where the run did.
        accelerator: Lightning's name of a device.
        config_dir: a folder of the user's own configs, whose methods may be loaded beside the package's.

    Raises:
        CoopError: not the folder of a run, another backbone than the run's, or a method that this installation does
            not offer.
    """
    prompt, cfg = load_prompt(run_dir / PROMPT), load_config(run_dir)
    check_offered("method", cfg.method, run_dir / CONFIG, config_dir)
    try:
        check_method(cfg.method)
    except CoopError as error:
        raise CoopError(f"{run_dir / CONFIG}: {error}") from error
    if backbone is None:
        check_weights(cfg.backbone, run_dir / CONFIG)
    device = device_of(accelerator)
    set_tf32(cfg.trainer.tf32)
    node = backbone or cfg.backbone
    clip = FrozenCLIP.load(**{field.name: node[field.name] for field in fields(BackboneConfig)})
    check_backbone(prompt, clip, run_dir / PROMPT)
    clip.to(device)
    method = build_method(cfg.method, clip, prompt.metadata["classnames"]).to(device)
    load_into(method, prompt, run_dir / PROMPT)
    return Trained(method.eval(), cfg, prompt)


def check_backbone(prompt: Prompt, clip: FrozenCLIP, path: Path) -> None:
    """Raises CoopError for a prompt that was learned on another backbone: its vectors mean nothing there."""
    learned = prompt.metadata
    same_name = (learned["backbone"], learned["pretrained"]) == (clip.name, clip.pretrained)
    # At another precision the same weights have another fingerprint; then the name has to do.
    comparable = learned["precision"] == clip.precision
    if not (learned["fingerprint"] == clip.fingerprint() if comparable else same_name):
        raise CoopError(
            f"{path}: learned on {learned['backbone']} ({learned['pretrained']}), this is {clip.name} "
            f"({clip.pretrained}){' with other weights' if same_name else ''}; "
            "a prompt works only on the backbone it was learned on"
        )


def load_into(method: Method, prompt: Prompt, path: Path) -> None:
    """Put a prompt's tensors into a method.

    Raises CoopError for tensors that are missing, of another shape, or integers where numbers are learned.
    """
    for name, own in method.state_dict().items():
        given = prompt.state.get(name, own)
        if given.is_floating_point() != own.is_floating_point():
            raise CoopError(f"{path}: {name} holds {given.dtype}, expected {own.dtype}; not what this method learns")
    try:
        method.load_state_dict(prompt.state)
    except RuntimeError as error:
        raise CoopError(f"{path}: does not fit this method: {str(error).splitlines()[-1].strip()}") from error
