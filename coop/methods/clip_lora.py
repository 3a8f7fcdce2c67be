"""CLIP-LoRA: low-rank weights in the attention of both towers (Zanella and Ben Ayed, CVPR workshops 2024)."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from coop.clip.backbone import FrozenCLIP
from coop.clip.deltas import LowRankTower, check_low_rank, encode_text, layers_named, without_padding
from coop.clip.handcrafted import HandCrafted
from coop.clip.image_tower import ImageTower
from coop.clip.templates import check_templates
from coop.methods.base import Method, check_above


class CLIPLoRA(Method):
    """y = W x + b + alpha / sqrt(r) * B A dropout(x), in the attention's projections; hand-crafted prompts.

    Args:
        clip: the frozen CLIP; with a ViT, unless `encoder` is "text".
        classnames: K class names.
        templates: prompts with `{}`; a text encoder that is trained sees the first.
        encoder: the towers that are trained.
        layers: "all", "bottom", "mid", "up", "half-bottom", "half-up", "top3", or a list of numbers from 0.
        params: of "q", "k", "v", "o".
        rank, alpha: see above; r is the rank.
        dropout: of the input of the low-rank branch.
        scale: of the logits, a constant.
        checkpoint: recompute activations in the backward pass, to save memory.
    """

    def __init__(self, clip: FrozenCLIP, classnames: Sequence[str], *, templates: list[str],
                 encoder: Literal["both", "text", "vision"] = "both", layers: str | list[int] = "all",
                 params: list[str] = ("q", "k", "v"), rank: int = 2, alpha: float = 1.0, dropout: float = 0.25,
                 scale: float = 100.0, checkpoint: bool = False):  # fmt: skip
        self.check(templates, layers, params, rank, dropout, scale)
        super().__init__(clip, classnames)
        self.checkpoint, self.needs_images = checkpoint, encoder != "text"
        self.register_buffer("log_scale", torch.tensor(math.log(scale)), persistent=False)
        options = {"rank": rank, "scale": alpha / math.sqrt(rank), "dropout": dropout}
        self.text = self.image = None
        if encoder != "vision":
            count = clip.text_layers
            self.text = LowRankTower(clip.text_width, count, layers_named(layers, count), params, **options)
        if encoder != "text":
            self.tower = ImageTower(clip, deltas=True)
            width, count = self.tower.width, self.tower.layers
            self.image = LowRankTower(width, count, layers_named(layers, count), params, **options)
        self.prompts = HandCrafted(clip, self.classnames, templates)
        ids = clip.tokenize([templates[0].replace("{}", name) for name in self.classnames])
        self.register_buffer("ids", without_padding(ids), persistent=False)

    @classmethod
    def check(cls, templates: list[str], layers: str | list[int] = "all", params: list[str] = ("q", "k", "v"),
              rank: int = 2, dropout: float = 0.25, scale: float = 100.0, **_) -> None:  # fmt: skip
        """Raises CoopError for ranks, layers or projections that no tower has."""
        check_templates("method.templates", templates)
        check_low_rank(layers, params, rank, dropout)
        check_above(0, scale=scale)

    def encode_image(self, images: Tensor) -> Tensor:
        if self.image is None:
            return super().encode_image(images)
        return self.tower(images, deltas=self.image.by_layer(), checkpoint=self.checkpoint)

    def forward(self) -> Tensor:
        if self.text is None:
            return self.prompts()
        return encode_text(self.clip, self.ids, self.text.by_layer(), self.checkpoint)

    @property
    def logit_scale(self) -> Tensor:
        return self.log_scale

    def merged_image_tower(self) -> nn.Module | None:
        return None if self.image is None else self.tower.merged(self.image)
