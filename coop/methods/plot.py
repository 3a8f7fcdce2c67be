"""PLOT: several prompts per class, matched to the places of an image by optimal transport (Chen et al., ICLR 2023)."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from coop.clip.backbone import FrozenCLIP, normalize
from coop.clip.local import check_local_features
from coop.clip.transport import sinkhorn
from coop.methods.base import Count, Positive
from coop.methods.coop import INIT_STD, ContextLength, PromptLearner


class PLOT(PromptLearner):
    """N prompts per class. An image's logit of a class is the total similarity of its L local features and the
    class's N text features under the optimal transport plan between them, which itself takes no gradient. The
    context (N, M, D) is for all classes, in front of the name, and random: N equal prompts would stay equal.

    Args:
        n_prompts: N.
        n_ctx: M; 16 if not given.
        global_term: add the pooled image feature's similarity to the mean of the N (raw) text features, as the authors
            do on ImageNet alone.
        eps: of the entropy in the transport problem.
        max_iter: the most Sinkhorn iterations.
        threshold: they end when the mean change over the batch falls below it.
    """

    feature_kind = "tokens"
    images_at_once = 128
    fixed: ClassVar = {"ctx_init": None, "class_specific": False, "class_token_position": "end"}

    def __init__(
        self, clip: FrozenCLIP, classnames: Sequence[str], *, n_prompts: Count = 4,
        n_ctx: ContextLength | None = None, global_term: bool = False, eps: Positive = 0.1, max_iter: Count = 100,
        threshold: Positive = 0.01, **options,
    ):  # fmt: skip
        transport = {"eps": eps, "max_iter": max_iter, "threshold": threshold}
        check_local_features(clip)
        super().__init__(clip, classnames, n_ctx, **options)
        self.ctx = nn.Parameter(INIT_STD * torch.randn(n_prompts, *self.ctx.shape, dtype=self.ctx.dtype))
        self.global_term, self.transport = global_term, transport

    def forward(self) -> Tensor:
        """Text features (N, K, E) of each prompt, not normalized."""
        return self.encoder(self.ctx, normalize=False)

    def logits(self, image_features: Tensor) -> Tensor:
        """image_features (B, 1 + L, E), L2-normalized, the pooled one first, to logits (B, K)."""
        text_features = self.text_features()
        with torch.autocast(image_features.device.type, enabled=False):
            text_features, places = text_features.to(image_features.dtype), image_features[:, 1:]
            similarity = torch.einsum("ble,nke->bkln", places, normalize(text_features))
            plan, _ = sinkhorn(similarity, **self.transport)
            logits = self.clip.logit_scale.exp() * (plan * similarity).sum(dim=(2, 3))
        if not self.global_term:
            return logits
        return logits + self.logits_of(image_features[:, 0], normalize(text_features.mean(dim=0)))
