"""From the trained towers to a folder that open_clip loads: `local-dir:FOLDER`."""

import math
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from image_tower import ARCHITECTURE, MEAN, SIZE, STD, JointSpace
from prompts import CONTEXT_LENGTH
from safetensors.torch import save
from text_tower import TextTower, Training
from torch import Tensor, nn

from coop.errors import CoopError
from coop.system.files import write_atomically, write_json

VOCABULARY = 49408
SCALES = torch.arange(5.0, 100.5, 0.5)
LAYER_NORM_EPS = 1e-5  # open_clip's own, with which the text tower is trained
WEIGHTS, CONFIG = "open_clip_model.safetensors", "open_clip_config.json"


def fit_logit_scale(tower_logits: Tensor, cosines: Tensor) -> float:
    """The scale at which cosines (N, K) say the same, as probabilities, as the tower's own classifier does (N, K)."""
    own = tower_logits.log_softmax(dim=-1)
    losses = [F.kl_div((s * cosines).log_softmax(dim=-1), own, reduction="batchmean", log_target=True) for s in SCALES]
    return SCALES[torch.stack(losses).argmin()].item()


@torch.no_grad()
def rescale_residual_stream(clip: nn.Module, factor: float) -> None:
    """Multiply what is added to the text tower's residual stream; every layer norm takes the factor out again.

    CoOp's learning rate (0.002) and initial context (0.02) suit a stream of CLIP's scale, which training from scratch
    does not end in. With the layer norms' epsilon times the factor's square, the function stays exactly the same.
    """
    written = [clip.token_embedding.weight, clip.positional_embedding]
    for block in clip.transformer.resblocks:
        written += [*block.attn.out_proj.parameters(), *block.mlp.c_proj.parameters()]
    for weight in written:
        weight.mul_(factor)
    for module in (*clip.transformer.modules(), clip.ln_final):
        if isinstance(module, nn.LayerNorm):
            module.eps = LAYER_NORM_EPS * factor**2


def model_config(training: Training, embed_dim: int, residual_scale: float) -> dict:
    """The folder's open_clip_config.json, for a residual stream that has been rescaled."""
    vision = dict(
        timm_model_name=ARCHITECTURE, timm_model_pretrained=False, timm_pool="avg", timm_proj="linear", image_size=SIZE
    )
    text = dict(
        context_length=CONTEXT_LENGTH, vocab_size=VOCABULARY, width=training.width, heads=training.heads,
        layers=training.layers, norm_kwargs=dict(eps=LAYER_NORM_EPS * residual_scale**2),
    )  # fmt: skip
    preprocess = dict(mean=[MEAN] * 3, std=[STD] * 3, interpolation="bicubic", resize_mode="shortest")
    return dict(model_cfg=dict(embed_dim=embed_dim, vision_cfg=vision, text_cfg=text), preprocess_cfg=preprocess)


@torch.no_grad()
def assemble(config: dict, image_tower: nn.Module, space: JointSpace, text: TextTower, logit_scale: float) -> nn.Module:
    """One open_clip model of both towers; token rows that never occurred in training are zero."""
    clip = open_clip.CLIP(**config["model_cfg"]).eval()
    own = {name: weight for name, weight in image_tower.state_dict().items() if not name.startswith("classifier")}
    clip.visual.trunk.load_state_dict(own)
    clip.visual.head.proj.weight.copy_(space.projection)
    trained = text.clip.state_dict()
    table = torch.zeros_like(clip.token_embedding.weight)
    table[list(text.rows)] = trained["token_embedding.weight"]
    trained["token_embedding.weight"] = table
    trained["logit_scale"] = torch.tensor(math.log(logit_scale))
    missing = clip.load_state_dict(trained, strict=False)
    left = [name for name in missing.missing_keys if not name.startswith("visual.")]
    if left or missing.unexpected_keys:
        raise CoopError(f"the text tower lacks {left} and has {missing.unexpected_keys}: open_clip's CLIP has changed")
    return clip


def write_model(clip: nn.Module, config: dict, card: str, folder: Path) -> None:
    """Config, card, and weights in half precision; the weights last, so that a folder that has them is whole."""
    half = {
        name: (weight.half() if weight.is_floating_point() else weight).contiguous()
        for name, weight in clip.state_dict().items()
    }
    write_json(folder / CONFIG, config)
    write_atomically(folder / "README.md", card.encode())
    write_atomically(folder / WEIGHTS, save(half))
