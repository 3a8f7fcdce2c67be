"""DePT: a second, linear head beside CoOp's similarity head (Zhang et al., CVPR 2024)."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coop.clip.backbone import FrozenCLIP, normalize
from coop.methods.base import Batch, Positive, Share
from coop.methods.coop import PromptLearner


class DePT(PromptLearner):
    """CoOp's prompt, and a linear classifier on features before normalization, each side scaled and shifted by channel.

    The classifier learns from image features and from the text features of their classes. On the classes of training
    both heads' logits are averaged; on others the similarities count alone (section 3.2).

    Args:
        head_weight: w, of the linear head in the loss and in the logits.
        head_lr: the learning rate of all but the context, as a multiple of the context's.
    """

    feature_kind = "raw"
    sized_by_training = ("weight", "bias")

    def __init__(
        self, clip: FrozenCLIP, classnames: Sequence[str], *, head_weight: Share = 0.7, head_lr: Positive = 6.5,
        **options,
    ):  # fmt: skip
        super().__init__(clip, classnames, **options)
        self.head_weight, self.head_lr = head_weight, head_lr
        start = nn.Linear(clip.embed_dim, len(classnames))
        self.weight, self.bias = start.weight, start.bias
        # Scale and shift (2, E) of each side.
        one = torch.stack([torch.ones(clip.embed_dim), torch.zeros(clip.embed_dim)])
        self.text_film, self.image_film = nn.Parameter(one.clone()), nn.Parameter(one.clone())

    def parameter_groups(self, optimizer: dict[str, Any]) -> list[dict[str, Any]]:
        new = [self.text_film, self.image_film, self.weight, self.bias]
        return [{"params": [self.ctx]}, {"params": new, "lr": self.head_lr * optimizer["lr"]}]

    def _linear(self, features: Tensor, film: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return F.linear(film[0] * features.to(film.dtype) + film[1], self.weight, self.bias)

    def logits(self, image_features: Tensor) -> Tensor:
        similarities = super().logits(normalize(image_features))
        if not self.same_classes:
            return similarities
        linear = self._linear(image_features, self.image_film)
        return (1 - self.head_weight) * similarities + self.head_weight * linear

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        text, image, labels = self.encoder(self.ctx, normalize=False), batch.image_features, batch.labels
        similarities = self.logits_of(normalize(image), normalize(text))
        of_texts, of_images = self._linear(text[labels], self.text_film), self._linear(image, self.image_film)
        linear_loss = F.cross_entropy(torch.cat([of_texts, of_images]), torch.cat([labels, labels]))
        w = self.head_weight
        loss = (1 - w) * F.cross_entropy(similarities, labels) + w * linear_loss
        return loss, (1 - w) * similarities + w * of_images
