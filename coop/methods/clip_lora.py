"""CLIP-LoRA: low-rank weights in the attention of both towers (Zanella and Ben Ayed, CVPR workshops 2024)."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from coop.clip.backbone import FrozenCLIP
from coop.clip.deltas import LAYER_NAMES, PROJECTIONS, LowRankTower, encode_text, layers_named, without_padding
from coop.clip.handcrafted import HandCrafted
from coop.clip.image_tower import ImageTower
from coop.clip.templates import check_templates
from coop.errors import CoopError
from coop.methods.base import Method


class CLIPLoRA(Method):
    """y = W x + b + alpha / sqrt(r) * B A dropout(x), in the attention's projections; hand-crafted prompts.

    Args:
        clip: the frozen CLIP; with a ViT, unless `encoder` is "text".
        classnames: K class names.
        templates: prompts with `{}`; a text encoder that is trained sees the first.
        encoder: the towers that are trained.
        layers: "all", "bottom", "mid", "up", "half-bottom", "half-up", "top3", or a list of numbers from 0.
        params: of "q", "k", "v", "o".
        rank: r.
        alpha: see above.
        dropout: of the input of the low-rank branch.
        scale: of the logits, a constant.
        checkpoint: recompute activations in the backward pass, to save memory.
    """

    def __init__(self, clip: FrozenCLIP, classnames: Sequence[str], *, templates: list,
                 encoder: Literal["both", "text", "vision"] = "both", layers: str | list = "all",
                 params: list = ("q", "k", "v"), rank: int = 2, alpha: float = 1.0, dropout: float = 0.25,
                 scale: float = 100.0, checkpoint: bool = False):  # fmt: skip
        self.check(templates, layers, params, rank, dropout)
        super().__init__(clip, classnames)
        self.scale, self.checkpoint, self.needs_images = scale, checkpoint, encoder != "text"
        options = {"rank": rank, "scale": alpha / math.sqrt(rank), "dropout": dropout}
        self.text = self.image = None
        if encoder != "vision":
            count = clip.text_layers
            self.text = LowRankTower(clip.text_width, count, layers_named(layers, count), params, **options)
        if encoder != "text":
            self.tower = ImageTower(clip)
            self.tower.check_deltas()
            chosen = layers_named(layers, self.tower.layers)
            self.image = LowRankTower(self.tower.width, self.tower.layers, chosen, params, **options)
        self.prompts = HandCrafted(clip, self.classnames, templates)
        ids = clip.tokenize([templates[0].replace("{}", name) for name in self.classnames])
        self.register_buffer("ids", without_padding(ids), persistent=False)

    @classmethod
    def check(cls, templates: list, layers: str | list = "all", params: list = ("q", "k", "v"), rank: int = 2,
              dropout: float = 0.25, **_) -> None:  # fmt: skip
        """Raises CoopError for ranks, layers or projections that no tower has."""
        check_templates("method.templates", templates)
        if rank < 1:
            raise CoopError(f"method.rank={rank}: must be at least 1")
        if isinstance(layers, str) and layers not in LAYER_NAMES:
            raise CoopError(f"method.layers={layers}: allowed are {', '.join(LAYER_NAMES)}, or a list of numbers")
        if not isinstance(layers, str) and not layers:
            raise CoopError("method.layers=[]: give at least one layer, or method.layers=all")
        if not params or set(params) - set(PROJECTIONS):
            raise CoopError(f"method.params={list(params)}: give some of {', '.join(PROJECTIONS)}")
        if not 0 <= dropout < 1:
            raise CoopError(f"method.dropout={dropout}: must be from 0 to below 1")

    def encode_image(self, images: Tensor) -> Tensor:
        if self.image is None:
            return super().encode_image(images)
        return self.tower(images, deltas=self.image.by_layer(), checkpoint=self.checkpoint)

    def forward(self) -> Tensor:
        return self.prompts() if self.text is None else encode_text(
            self.clip, self.ids, self.text.by_layer(), self.checkpoint
        )  # fmt: skip

    def logits_of(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        with torch.autocast(image_features.device.type, enabled=False):
            return self.scale * image_features @ text_features.T.to(image_features.dtype)
