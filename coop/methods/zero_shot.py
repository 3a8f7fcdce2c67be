"""Zero-shot CLIP with one hand-crafted prompt per class."""

from collections.abc import Sequence

from torch import Tensor

from coop.clip.backbone import FrozenCLIP
from coop.clip.handcrafted import HandCrafted
from coop.clip.templates import Template
from coop.methods.base import Method


class ZeroShot(Method):
    """Class weights are the text features of `template` filled with each class name (CoOp, section 3.1)."""

    learns = False

    def __init__(self, clip: FrozenCLIP, classnames: Sequence[str], *, template: Template):
        super().__init__(clip, classnames)
        self.template = template
        self.prompts = HandCrafted(clip, self.classnames, [template])

    def forward(self) -> Tensor:
        return self.prompts()
