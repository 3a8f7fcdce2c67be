"""A small CLIP with a ViT image tower whose weights are a pure function of parameter names.

For comparing methods that reach into the image tower (prompts, low-rank weights) or are trained on
images. Every parameter is drawn from numpy's legacy `RandomState`, whose stream is frozen, seeded by
the CRC-32 of the parameter's name (OpenAI's and open_clip's names, which agree for this architecture).
"""

import copy
import zlib
from functools import cache

import numpy as np
import torch

EMBED_DIM, CONTEXT_LENGTH, VOCAB_SIZE = 64, 77, 49408
VISION = dict(image_size=48, layers=4, width=128, head_width=64, patch_size=16)
TEXT = dict(context_length=CONTEXT_LENGTH, vocab_size=VOCAB_SIZE, width=128, heads=2, layers=4)
MODEL_CFG = dict(embed_dim=EMBED_DIM, quick_gelu=True, vision_cfg=VISION, text_cfg=TEXT)
CLASSNAMES = [
    "face",
    "leopard",
    "motorbike",
    "accordion",
    "airplane",
    "anchor",
    "bass",
    "beaver",
    "water_lilly",
    "wild_cat",
    "windsor_chair",
    "yin_yang",
]


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Value of the parameter `name`, float32, of shape `shape`."""
    if name == "logit_scale":
        return np.full(shape, np.log(1 / 0.07), dtype=np.float32)
    noise = np.random.RandomState(zlib.crc32(name.encode()) & 0x7FFFFFFF).standard_normal(shape).astype(np.float32)
    if name == "token_embedding.weight":
        return 0.02 * noise
    if name in ("positional_embedding", "visual.positional_embedding", "visual.class_embedding"):
        return 0.01 * noise if name == "positional_embedding" else 0.1 * noise
    if ".ln_" in f".{name}" or "ln_final" in name or "ln_p" in name:
        return (1 + 0.05 * noise if name.endswith("weight") else 0.05 * noise).astype(np.float32)
    if name.endswith("bias"):
        return 0.02 * noise
    fan_in = int(np.prod(shape[1:])) if name == "visual.conv1.weight" else shape[-1]
    return (fan_in**-0.5 * noise).astype(np.float32)


@cache
def _built(text_layers: int, vision_width: int) -> torch.nn.Module:
    import open_clip

    changes = {"text_cfg": TEXT | {"layers": text_layers}, "vision_cfg": VISION | {"width": vision_width}}
    config = MODEL_CFG | changes
    model = open_clip.CLIP(**config).float().eval()
    state = {
        k: torch.from_numpy(np.ascontiguousarray(weight(k, tuple(v.shape)))).reshape(v.shape)
        for k, v in model.state_dict().items()
    }
    model.load_state_dict(state)
    return model


def small_vit_clip(text_layers: int = TEXT["layers"], vision_width: int = VISION["width"]) -> torch.nn.Module:
    """The model, as an open_clip `CLIP`, float32, in eval mode; a copy of its own at each call."""
    return copy.deepcopy(_built(text_layers, vision_width))


def drawn(key: str, shape: tuple[int, ...], std: float = 0.02) -> torch.Tensor:
    """Initial value of a learned tensor: N(0, std^2), seeded by the CRC-32 of `key`."""
    noise = np.random.RandomState(zlib.crc32(key.encode()) & 0x7FFFFFFF).standard_normal(shape).astype(np.float32)
    return torch.from_numpy(np.ascontiguousarray(std * noise))


def images(n: int = 24, key: str = "images") -> torch.Tensor:
    """`n` pseudo images (n, 3, 48, 48), already "normalized"; labels are `arange(n) % 12`."""
    return drawn(key, (n, 3, 48, 48), std=1.0)
