"""Fine-tuning the image encoder."""

from collections.abc import Sequence

from torch import Tensor

from coop.clip.backbone import FrozenCLIP
from coop.clip.deltas import TrainableImageTower
from coop.clip.handcrafted import HandCrafted
from coop.clip.templates import Template
from coop.methods.base import Method


class ImageEncoder(Method):
    """All weights of the image tower are trained; class weights stay those of a hand-crafted prompt.

    One of the fine-tuning alternatives that the CoOp paper compares with. The protocol is CoOp's, its learning rate
    included, which is high for the whole tower of a large CLIP: the paper finds it far below zero-shot on ImageNet.

    Args:
        clip: the frozen CLIP, which the trained copy starts from.
        template: a prompt with `{}` where the class name goes.
    """

    needs_images = True

    def __init__(self, clip: FrozenCLIP, classnames: Sequence[str], *, template: Template):
        super().__init__(clip, classnames)
        self.prompts = HandCrafted(clip, self.classnames, [template])
        self.tower = TrainableImageTower(clip)

    def encode_image(self, images: Tensor) -> Tensor:
        return self.tower(images)

    def forward(self) -> Tensor:
        return self.prompts()
