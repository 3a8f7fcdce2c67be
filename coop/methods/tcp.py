"""TCP: prompts made from each class's own text feature, put inside the text tower (Yao et al., CVPR 2024)."""

from collections.abc import Sequence
from functools import partial
from typing import ClassVar

import torch.nn.functional as F
from open_clip.transformer import QuickGELU
from torch import Tensor, nn

from coop.clip.backbone import FrozenCLIP
from coop.clip.handcrafted import HandCrafted
from coop.clip.templates import Template
from coop.errors import CoopError
from coop.methods.base import Batch, Count, Weight
from coop.methods.coop import ContextLength, PromptLearner, Words


class TCP(PromptLearner):
    """CoOp's prompt; before one layer, the states at its M places give way to vectors made of the class's text feature.

    The loss adds weight * (1 - mean over all classes of cos(text_features, hand-crafted ones)).

    Args:
        weight: of the distance from it.
        layer: the layer before which states are replaced, from 1; two thirds of the tower's depth if not given, which
            is the authors' layer 8 in a tower of 12.
        n_ctx: M; 4 if neither it nor `ctx_init` is given.
    """

    fixed: ClassVar = {"class_specific": False, "class_token_position": "end"}

    def __init__(self, clip: FrozenCLIP, classnames: Sequence[str], *, template: Template, weight: Weight = 8.0,
                 layer: Count | None = None, n_ctx: ContextLength | None = None, ctx_init: Words | None = None,
                 **options):  # fmt: skip
        super().__init__(clip, classnames, n_ctx or (None if ctx_init else 4), ctx_init, **options)
        layers = clip.text_layers
        self.layer, self.weight = layer or max(1, 2 * layers // 3), weight
        if self.layer >= layers:
            fits = f"choose from 1 to {layers - 1}" if layers > 1 else "take another backbone"
            raise CoopError(f"method.layer={self.layer}: the text tower of {clip.name} has {layers} layers; {fits}")
        self.teacher = HandCrafted(clip, self.classnames, [template])
        hidden, linear = clip.embed_dim // 4, partial(nn.Linear, dtype=self.ctx.dtype)
        self.meta_net = nn.Sequential(linear(clip.embed_dim, hidden), QuickGELU(), linear(hidden, self.ctx.numel()))

    def class_prompts(self) -> Tensor:
        """What the states of each class's context give way to, (K, M, D)."""
        return self.meta_net(self.teacher().to(self.ctx.dtype)).unflatten(1, self.ctx.shape)

    def forward(self) -> Tensor:
        return self.encoder(self.ctx, {self.layer: self.class_prompts()})

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        text_features = self.text_features()
        logits = self.logits_of(batch.image_features, text_features)
        distance = 1 - F.cosine_similarity(text_features, self.teacher(), dim=1, eps=1e-7).mean()
        return F.cross_entropy(logits, batch.labels) + self.weight * distance, logits
