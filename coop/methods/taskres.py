"""TaskRes: a residual on each class's text features (Yu et al., CVPR 2023)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from coop.clip.backbone import FrozenCLIP, normalize
from coop.clip.handcrafted import HandCrafted
from coop.clip.templates import Templates
from coop.methods.base import Method, Positive


class TaskRes(Method):
    """Class weights are t + alpha * x, normalized, with learned x (equation 4; the authors' "regular base").

    t (K, E) are text features averaged over the templates before any normalization, so that their norm (7 to 11 for
    CLIP) sets how far a residual of a given size turns them. As with the authors, names keep their underscores.

    Args:
        alpha: the weight of the residual.
    """

    transfers_to_other_classes = False

    def __init__(self, clip: FrozenCLIP, classnames: Sequence[str], *, templates: Templates, alpha: Positive = 0.5):
        super().__init__(clip, classnames)
        self.alpha = alpha
        self.base = HandCrafted(clip, list(classnames), templates, raw=True)
        self.residual = nn.Parameter(torch.zeros(len(classnames), clip.embed_dim))

    def forward(self) -> Tensor:
        return normalize(self.base().to(self.residual.dtype) + self.alpha * self.residual)
