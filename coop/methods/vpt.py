"""VPT: prompts in the image tower alone (Jia et al., ECCV 2022; deep vision prompting in MaPLe, table 1)."""

from collections.abc import Sequence

from torch import Tensor

from coop.clip.backbone import FrozenCLIP
from coop.clip.handcrafted import HandCrafted
from coop.clip.image_tower import ImageTower, new_prompts
from coop.clip.templates import check_template
from coop.errors import CoopError
from coop.methods.base import Method


class VPT(Method):
    """Prompts at the input of the image tower and in front of its next layers; class weights are hand-crafted.

    Attributes:
        image_prompts: J parameters (n, V).

    Args:
        clip: the frozen CLIP, with a ViT.
        classnames: K class names.
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
        template: str,
        n_ctx_vision: int = 8,
        depth_vision: int = 12,
        checkpoint: bool = False,
    ):
        self.check(template=template, n_ctx_vision=n_ctx_vision, depth_vision=depth_vision)
        super().__init__(clip, classnames)
        self.tower, self.checkpoint = ImageTower(clip), checkpoint
        self.tower.check_depth("method.depth_vision", depth_vision)
        self.prompts = HandCrafted(clip, self.classnames, [template])
        self.image_prompts = new_prompts(n_ctx_vision, depth_vision, self.tower.width)

    @classmethod
    def check(cls, *, template: str, n_ctx_vision: int = 8, depth_vision: int = 12, **_) -> None:
        """Raises CoopError for numbers of prompts or layers below 1."""
        check_template("method.template", template)
        for key, value in {"n_ctx_vision": n_ctx_vision, "depth_vision": depth_vision}.items():
            if value < 1:
                raise CoopError(f"method.{key}={value}: must be at least 1")

    def encode_image(self, images: Tensor) -> Tensor:
        return self.tower(images, list(self.image_prompts), checkpoint=self.checkpoint)

    def forward(self) -> Tensor:
        return self.prompts()
