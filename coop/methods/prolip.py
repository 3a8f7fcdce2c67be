"""ProLIP: the last matrix of the image tower, held near its start (Fahes et al., arXiv 2410.05270)."""

from collections.abc import Sequence
from typing import Annotated

import torch.nn.functional as F
from torch import Tensor

from coop.clip.backbone import FrozenCLIP
from coop.clip.deltas import TrainedCopies, visual_projection
from coop.clip.handcrafted import HandCrafted
from coop.clip.templates import Templates
from coop.methods.base import Batch, Method
from coop.system.validation import Rule

# The config's own is 1 / shots, and all images (-1) have none.
Penalty = Annotated[float, Rule(lambda penalty: penalty >= 0, "must be at least 0; with shots=-1, give a number")]


class ProLIP(Method):
    """The projection W from the image tower's width to the space of the features is trained, all else is frozen.

    The loss adds penalty * ||W - W_0||^2 (Frobenius), W_0 the pretrained one. Class weights are hand-crafted.

    Args:
        penalty: see above.
    """

    needs_images = True

    def __init__(self, clip: FrozenCLIP, classnames: Sequence[str], *, templates: Templates, penalty: Penalty = 0.0625):
        super().__init__(clip, classnames)
        self.penalty = penalty
        self.prompts = HandCrafted(clip, self.classnames, templates)
        self.projection = TrainedCopies(clip, [visual_projection(clip)])

    def encode_image(self, images: Tensor) -> Tensor:
        return self.projection.encode_image(images)

    def forward(self) -> Tensor:
        return self.prompts()

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        loss, logits = super().loss(batch)
        (start,), (now,) = self.projection.originals(), self.projection.weights
        return loss + self.penalty * F.mse_loss(now, start.to(now.dtype), reduction="sum"), logits
