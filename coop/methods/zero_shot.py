"""Zero-shot CLIP with one hand-written prompt per class."""

from collections.abc import Sequence

from torch import Tensor

from coop.clip.backbone import FrozenCLIP
from coop.errors import CoopError
from coop.methods.base import Method


class ZeroShot(Method):
    """Class weights are the text features of `template` filled with each class name (CoOp, section 3.1).

    Args:
        clip: the frozen CLIP.
        classnames: K class names.
        template: a prompt with `{}` where the class name goes.
    """

    def __init__(self, clip: FrozenCLIP, classnames: Sequence[str], *, template: str):
        self.check(template=template)
        super().__init__(clip, classnames)
        self.template = template

    @classmethod
    def check(cls, template: str) -> None:
        """Raises CoopError without exactly one place for the class name."""
        if template.count("{}") != 1:
            raise CoopError(f'template="{template}": needs one {{}} where the class name goes')

    def forward(self) -> Tensor:
        return self.clip.encode_text([self.template.format(name) for name in self.classnames])
