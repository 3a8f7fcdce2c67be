"""KgCoOp: a context that stays near hand-crafted prompts (Yao et al., CVPR 2023)."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from coop.clip.backbone import FrozenCLIP
from coop.clip.handcrafted import HandCrafted
from coop.clip.templates import Template
from coop.methods.base import Batch, Weight
from coop.methods.coop import PromptLearner


class KgCoOp(PromptLearner):
    """CoOp's prompt; the loss adds weight * (1 - mean over all classes of cos(text_features, hand-crafted ones)).

    Equation 5, with the authors' 1 - cos where the paper writes a squared distance, which is twice as large.

    Args:
        template: the hand-crafted prompt, with `{}` where the class name goes.
        weight: of the distance from it (lambda).
        options: CoOp's own.
    """

    def __init__(
        self, clip: FrozenCLIP, classnames: Sequence[str], *, template: Template, weight: Weight = 8.0, **options
    ):
        super().__init__(clip, classnames, **options)
        self.weight = weight
        self.teacher = HandCrafted(clip, self.classnames, [template])

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        text_features = self.text_features()
        logits = self.logits_of(batch.image_features, text_features)
        distance = 1 - F.cosine_similarity(text_features, self.teacher(), dim=1, eps=1e-7).mean()
        return F.cross_entropy(logits, batch.labels) + self.weight * distance, logits
