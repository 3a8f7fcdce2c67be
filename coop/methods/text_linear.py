"""A linear layer on the text features."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coop.clip.backbone import FrozenCLIP, normalize
from coop.clip.handcrafted import HandCrafted
from coop.clip.templates import Template
from coop.methods.base import Method


class TextLinear(Method):
    """text_features (K, E) of a hand-crafted prompt, times a trained matrix (E, E) that starts as the identity.

    The "transformation layer" among the fine-tuning alternatives that the CoOp paper compares with.
    """

    def __init__(self, clip: FrozenCLIP, classnames: Sequence[str], *, template: Template):
        super().__init__(clip, classnames)
        self.prompts = HandCrafted(clip, self.classnames, [template])
        self.weight = nn.Parameter(torch.eye(clip.embed_dim))

    def forward(self) -> Tensor:
        return normalize(F.linear(self.prompts().to(self.weight.dtype), self.weight))
