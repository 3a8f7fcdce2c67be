"""Writing the small CLIP to disk in the forms that backbones come in."""

import json
from pathlib import Path

import small_clip as small
import torch
from safetensors.torch import save_file

CONFIG = {
    "embed_dim": small.EMBED_DIM,
    "vision_cfg": small.MODEL_CFG["vision_cfg"],
    "text_cfg": small.MODEL_CFG["text_cfg"],
}
PREPROCESS = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}


def write_clip_folder(
    folder: Path, model: torch.nn.Module | None = None, quick_gelu: bool = True, config: dict = CONFIG
) -> Path:
    """Write the small CLIP, or another model with its config, as a `local-dir:` folder."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": {**config, "quick_gelu": quick_gelu}, "preprocess_cfg": PREPROCESS}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file((model or small.small_clip()).state_dict(), folder / "open_clip_model.safetensors")
    return folder
