"""VPT: prompts in the image tower alone (Jia et al., ECCV 2022; deep vision prompting in MaPLe, table 1)."""

from collections.abc import Sequence

from torch import Tensor

from coop.clip.backbone import FrozenCLIP
from coop.clip.handcrafted import HandCrafted
from coop.clip.image_tower import ImageTower, new_prompts
from coop.clip.templates import Template
from coop.methods.base import Count, Method


class VPT(Method):
    """Prompts at the input of the image tower and in front of its next layers; class weights are hand-crafted.

    Attributes:
        image_prompts: J parameters (n, V).

    Args:
        clip: the frozen CLIP, with a ViT.
        template: a prompt with `{}` where the class name goes.
        n_ctx_vision: n.
        depth_vision: J; 1 is the input alone ("shallow"), the number of layers is all of them.
        checkpoint: recompute activations in the backward pass, to save memory.
    """

    needs_images = True

    def __init__(
        self,
        clip: FrozenCLIP,
        classnames: Sequence[str],
        *,
        template: Template,
        n_ctx_vision: Count = 8,
        depth_vision: Count = 12,
        checkpoint: bool = False,
    ):
        super().__init__(clip, classnames)
        self.tower, self.checkpoint = ImageTower(clip), checkpoint
        self.tower.check_depth(depth_vision, "depth_vision")
        self.prompts = HandCrafted(clip, self.classnames, [template])
        self.image_prompts = new_prompts(n_ctx_vision, depth_vision, self.tower.width)

    def encode_image(self, images: Tensor) -> Tensor:
        return self.tower(images, list(self.image_prompts), checkpoint=self.checkpoint)

    def forward(self) -> Tensor:
        return self.prompts()
