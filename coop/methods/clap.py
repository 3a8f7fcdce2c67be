"""CLAP and ZS-LP: class weights that are held near the text features they start from (CLAP, CVPR 2024)."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from coop.clip.backbone import FrozenCLIP, normalize
from coop.clip.handcrafted import HandCrafted
from coop.clip.templates import Templates
from coop.errors import CoopError
from coop.methods.base import Batch, Labeled, Method


class CLAP(Method):
    """Learned class weights w, normalized in the logits; loss = cross-entropy + mean over k of lambda_k * d(w_k, t_k).

    t (K, E) are text features averaged over the templates before any normalization; names keep their underscores, as
    with the authors. lambda_k is the mean zero-shot probability of class k on its training images (equation 8).

    Args:
        init: w starts as t, or at random.
        constraint: d is the squared distance, 1 - cosine, or nothing (ZS-LP).
        multipliers: lambda as above, 1 (balanced), divided by its mean (corrected), or its mean (constant).
        adaptive: raise lambda_k after each epoch by the squared distance times that of the epoch before (at first 0).
    """

    transfers_to_other_classes = False
    works_without_validation = True  # nothing is chosen

    def __init__(
        self, clip: FrozenCLIP, classnames: Sequence[str], *, templates: Templates,
        init: Literal["zero_shot", "random"] = "zero_shot", constraint: Literal["l2", "cosine", "none"] = "l2",
        multipliers: Literal["zero_shot", "balanced", "corrected", "constant"] = "zero_shot", adaptive: bool = False,
    ):  # fmt: skip
        super().__init__(clip, classnames)
        self.init, self.constraint, self.kind, self.adaptive = init, constraint, multipliers, adaptive
        self.base = HandCrafted(clip, list(classnames), templates, raw=True)
        self.prototypes = nn.Parameter(nn.init.kaiming_normal_(torch.empty(len(classnames), clip.embed_dim)))
        self.register_buffer("multipliers", torch.zeros(len(classnames)))
        self.register_buffer("penalty", torch.zeros(len(classnames)))

    @classmethod
    def check(cls, constraint: str = "l2", adaptive: bool = False, **_) -> None:
        if adaptive and constraint == "none":
            raise CoopError("method.adaptive=true: method.constraint=none has no multipliers; give l2 or cosine")

    def prepare(self, labeled: Labeled) -> None:
        base = self.base()
        if self.init == "zero_shot":
            self.prototypes.data.copy_(base)
        if self.constraint == "none":
            return
        features, labels = (x.to(base.device) for x in labeled("train"))
        probabilities = self.logits_of(features.flatten(0, 1), normalize(base)).softmax(dim=1)
        of_class = nn.functional.one_hot(labels.repeat(len(features)), len(base)).to(probabilities)
        sure = (probabilities * of_class).sum(dim=0) / of_class.sum(dim=0).clamp(min=1)
        others = {"balanced": 1.0, "corrected": sure / sure.mean(), "constant": sure.mean()}
        self.multipliers[:] = others.get(self.kind, sure)

    def forward(self) -> Tensor:
        return normalize(self.prototypes)

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        loss, logits = super().loss(batch)
        w, t = self.prototypes, self.base().to(self.prototypes)
        distance = 1 - nn.functional.cosine_similarity(w, t) if self.constraint == "cosine" else (w - t).pow(2).sum(1)
        return loss + (self.multipliers * distance).mean(), logits

    def on_epoch_end(self, epoch: int, epochs: int) -> None:
        if self.adaptive:
            squared = (self.prototypes.detach() - self.base().to(self.prototypes)).square().sum(dim=1)
            self.multipliers.add_(self.penalty * squared).clamp_(min=0)
            self.penalty.copy_(squared)
