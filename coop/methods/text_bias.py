"""A bias on the text features."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from coop.clip.backbone import FrozenCLIP, normalize
from coop.clip.handcrafted import HandCrafted
from coop.clip.templates import Template
from coop.methods.base import Method


class TextBias(Method):
    """text_features (K, E) of a hand-crafted prompt, plus a trained vector that starts at zero, normalized again.

    One of the fine-tuning alternatives that the CoOp paper compares with.

    Args:
        class_specific: a vector of its own for every class, (K, E), instead of one (E) for all.
    """

    def __init__(
        self, clip: FrozenCLIP, classnames: Sequence[str], *, template: Template, class_specific: bool = False
    ):
        super().__init__(clip, classnames)
        self.class_specific = class_specific
        self.transfers_to_other_classes = not class_specific
        self.prompts = HandCrafted(clip, self.classnames, [template])
        copies = (len(classnames),) if class_specific else ()
        self.bias = nn.Parameter(torch.zeros(*copies, clip.embed_dim))

    def forward(self) -> Tensor:
        return normalize(self.prompts().to(self.bias.dtype) + self.bias)
