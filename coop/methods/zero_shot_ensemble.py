"""Zero-shot CLIP with many hand-crafted prompts per class."""

from collections.abc import Sequence

from torch import Tensor

from coop.clip.backbone import FrozenCLIP
from coop.clip.handcrafted import HandCrafted
from coop.clip.templates import Templates, clip_templates
from coop.methods.base import Method


class ZeroShotEnsemble(Method):
    """Class weights are averages over templates in embedding space, normalized before and after.

    Source: Radford et al. 2021, section 3.1.4.

    Args:
        templates: 80 (all of CLIP's ImageNet templates), 7 (those that its authors selected), or a list of prompts
            with one `{}` each.
    """

    learns = False

    def __init__(self, clip: FrozenCLIP, classnames: Sequence[str], *, templates: int | Templates = 80):
        super().__init__(clip, classnames)
        chosen = clip_templates(templates) if isinstance(templates, int) else templates
        self.prompts = HandCrafted(clip, self.classnames, chosen)

    @classmethod
    def check(cls, templates: int | list[str] = 80) -> None:
        if isinstance(templates, int):
            clip_templates(templates)

    def forward(self) -> Tensor:
        return self.prompts()
