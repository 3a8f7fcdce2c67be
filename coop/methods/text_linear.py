"""A linear layer on the text features."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coop.clip.backbone import FrozenCLIP, normalize
from coop.clip.handcrafted import HandCrafted
from coop.clip.templates import check_template
from coop.methods.base import Method


class TextLinear(Method):
    """text_features (K, E) of a hand-crafted prompt, times a trained matrix (E, E) that starts as the identity.

    The "transformation layer" among the fine-tuning alternatives that the CoOp paper compares with.

    Args:
        clip: the frozen CLIP.
        classnames: K class names.
        template: a prompt with `{}` where the class name goes.
    """

    def __init__(self, clip: FrozenCLIP, classnames: Sequence[str], *, template: str):
        self.check(template)
        super().__init__(clip, classnames)
        self.prompts = HandCrafted(clip, self.classnames, [template])
        self.weight = nn.Parameter(torch.eye(clip.embed_dim))

    @classmethod
    def check(cls, template: str) -> None:
        """Raises CoopError for a template without one place for the class name."""
        check_template("method.template", template)

    def forward(self) -> Tensor:
        return normalize(F.linear(self.prompts().to(self.weight.dtype), self.weight))
