"""2SFS: first the LayerNorms of both towers, then a linear classifier (Farina et al., CVPR 2025)."""

from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coop.clip.backbone import FrozenCLIP
from coop.clip.deltas import TrainedCopies, encode_text, layer_norms, without_padding
from coop.clip.templates import Template
from coop.methods.base import Batch, Method
from coop.system.validation import Rule

InBetween = Annotated[float, Rule(lambda share: 0 < share < 1, "must be above 0 and below 1")]


class TwoStage(Method):
    """In the first steps all LayerNorms learn, by similarities of images and prompts. A classifier then starts from the
    text features that these give, and learns alone. It classifies the classes of training; for others there is the
    tuned text encoder.

    Args:
        first_stage: its share of all steps.
    """

    needs_images = hand_crafted = True
    sized_by_training = ("weight",)

    def __init__(
        self, clip: FrozenCLIP, classnames: Sequence[str], *, template: Template, first_stage: InBetween = 0.6
    ):
        super().__init__(clip, classnames)
        self.first_stage, self.second = first_stage, True  # what is not being trained has both stages behind it
        self.norms = TrainedCopies(clip, layer_norms(clip))
        self.weight = nn.Parameter(torch.zeros(len(classnames), clip.embed_dim))  # used without normalization
        ids = clip.tokenize([template.replace("{}", name) for name in self.classnames])
        self.register_buffer("ids", without_padding(ids), persistent=False)

    def encode_image(self, images: Tensor) -> Tensor:
        return self.norms.encode_image(images)

    def forward(self) -> Tensor:
        return self.norms(encode_text, self.clip, self.ids)

    def logits(self, image_features: Tensor) -> Tensor:
        if not (self.second and self.same_classes):
            return super().logits(image_features)
        return self.logits_of(image_features, self.weight)

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        switch = int(self.first_stage * batch.steps)
        self.second = batch.step >= switch
        if batch.step == switch:
            with torch.no_grad():
                self.weight.copy_(self.text_features())
        features = batch.image_features.detach() if self.second else batch.image_features
        logits = self.logits(features)
        # Several devices wait for the gradients of all that is trained.
        return F.cross_entropy(logits, batch.labels) + 0 * sum(p.sum() for p in self._resting()), logits

    def backward(self, loss: Tensor) -> None:
        loss.backward()
        for parameter in self._resting():  # without a gradient there is no step, nor weight decay
            parameter.grad = None

    def _resting(self) -> list[Tensor]:
        return list(self.norms.parameters()) if self.second else [self.weight]
