"""ProLIP: the last matrix of the image tower, held near its start (Fahes et al., arXiv 2410.05270)."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from coop.clip.backbone import FrozenCLIP
from coop.clip.deltas import TrainedCopies, visual_projection
from coop.clip.handcrafted import HandCrafted
from coop.clip.templates import check_templates
from coop.errors import CoopError
from coop.methods.base import Batch, Method


class ProLIP(Method):
    """The projection W from the image tower's width to the space of the features is trained, all else is frozen.

    The loss adds penalty * ||W - W_0||^2 (Frobenius), W_0 the pretrained one. Class weights are hand-crafted.

    Args:
        clip: the frozen CLIP.
        classnames: K class names.
        templates: prompts with `{}` where the class name goes.
        penalty: see above.
    """

    needs_images = True

    def __init__(self, clip: FrozenCLIP, classnames: Sequence[str], *, templates: list[str], penalty: float = 0.0625):
        self.check(templates, penalty)
        super().__init__(clip, classnames)
        self.penalty = penalty
        self.prompts = HandCrafted(clip, self.classnames, templates)
        self.projection = TrainedCopies(clip, [visual_projection(clip)])

    @classmethod
    def check(cls, templates: list[str], penalty: float = 0.0625) -> None:
        """Raises CoopError for templates without a place for the class name, or a negative penalty."""
        check_templates("method.templates", templates)
        if penalty < 0:
            raise CoopError(f"method.penalty={penalty}: must be at least 0; with shots=-1, give a number")

    def encode_image(self, images: Tensor) -> Tensor:
        return self.projection.encode_image(images)

    def forward(self) -> Tensor:
        return self.prompts()

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        loss, logits = super().loss(batch)
        (start,), (now,) = self.projection.originals(), self.projection.weights
        return loss + self.penalty * F.mse_loss(now, start.to(now.dtype), reduction="sum"), logits
