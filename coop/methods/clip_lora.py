"""CLIP-LoRA: low-rank weights in the attention of both towers (Zanella and Ben Ayed, CVPR workshops 2024)."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from coop.clip.backbone import FrozenCLIP
from coop.clip.deltas import LAYER_NAMES, PROJECTIONS, LowRankTower, encode_text, without_padding
from coop.clip.handcrafted import HandCrafted
from coop.clip.image_tower import ImageTower
from coop.clip.templates import Templates
from coop.errors import CoopError
from coop.methods.base import Count, Method, Positive, Share
from coop.methods.coop import word_context
from coop.system.validation import NOT_EMPTY, Rule, one_of

ONE_OF_THESE = Rule(LAYER_NAMES.__contains__, f"allowed are {', '.join(LAYER_NAMES)}, or a list of numbers")
Layers = Annotated[str, ONE_OF_THESE] | Annotated[list[int], NOT_EMPTY]
Projections = Annotated[list[Annotated[str, one_of(*PROJECTIONS)]], NOT_EMPTY]


class CLIPLoRA(Method):
    """y = W x + b + alpha / sqrt(r) * B A dropout(x), in the attention's projections; hand-crafted prompts.

    Args:
        templates: prompts with `{}`; a text encoder that is trained sees the first.
        encoder: the towers that are trained; the image tower has to be a ViT.
        layers: "all", "bottom", "mid", "up", "half-bottom", "half-up", "top3", or a list of numbers from 0.
        params: of "q", "k", "v", "o".
        rank, alpha: see above; r is the rank.
        dropout: of the input of the low-rank branch.
        scale: of the logits, a constant.
        learn_context: the words before the class name are learned, too, from their embeddings on, as CoOp's context.
    """

    def __init__(self, clip: FrozenCLIP, classnames: Sequence[str], *, templates: Templates,
                 encoder: Literal["both", "text", "vision"] = "both", layers: Layers = "all",
                 params: Projections = ("q", "k", "v"), rank: Count = 2, alpha: Positive = 1.0, dropout: Share = 0.25,
                 scale: Positive = 100.0, learn_context: bool = False, checkpoint: bool = False):  # fmt: skip
        super().__init__(clip, classnames)
        self.checkpoint, self.needs_images = checkpoint, encoder != "text"
        self.register_buffer("log_scale", torch.tensor(math.log(scale)), persistent=False)
        low_rank = partial(LowRankTower, chosen=layers, projections=params, rank=rank, scale=alpha / math.sqrt(rank))
        self.text = None if encoder == "vision" else low_rank(clip.text_width, clip.text_layers, dropout=dropout)
        self.tower = None if encoder == "text" else ImageTower(clip, deltas=True)
        self.image = self.tower and low_rank(self.tower.width, self.tower.layers, dropout=dropout)
        self.prompts = HandCrafted(clip, self.classnames, templates)
        ids = clip.tokenize([templates[0].replace("{}", name) for name in self.classnames])
        self.register_buffer("ids", without_padding(ids), persistent=False)
        self.ctx = nn.Parameter(word_context(clip, templates[0].partition("{}")[0])) if learn_context else None

    @classmethod
    def check(cls, templates: list[str], learn_context: bool = False, **_) -> None:
        if learn_context and not templates[0].partition("{}")[0].strip():
            raise CoopError(f"method.learn_context=true: no word stands before {{}} in method.templates={templates}")

    def encode_image(self, images: Tensor) -> Tensor:
        if self.image is None:
            return super().encode_image(images)
        return self.tower(images, deltas=self.image.by_layer(), checkpoint=self.checkpoint)

    def forward(self) -> Tensor:
        if self.text is None and self.ctx is None:
            return self.prompts()
        deltas = None if self.text is None else self.text.by_layer()
        return encode_text(self.clip, self.ids, deltas, self.checkpoint, ctx=self.ctx)

    @property
    def logit_scale(self) -> Tensor:
        return self.log_scale

    def merged_image_tower(self) -> nn.Module | None:
        return None if self.image is None else self.tower.merged(self.image)
