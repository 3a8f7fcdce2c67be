"""KgCoOp: a context that stays near hand-crafted prompts (Yao et al., CVPR 2023)."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from coop.clip.backbone import FrozenCLIP
from coop.clip.handcrafted import HandCrafted
from coop.clip.templates import check_template
from coop.errors import CoopError
from coop.methods.base import Batch
from coop.methods.coop import PromptLearner


class KgCoOp(PromptLearner):
    """CoOp's prompt; the loss adds weight * (1 - mean over all classes of cos(text_features, hand-crafted ones)).

    Equation 5, with the authors' 1 - cos where the paper writes a squared distance, which is twice as large.

    Args:
        clip: the frozen CLIP.
        classnames: K class names.
        template: the hand-crafted prompt, with `{}` where the class name goes.
        weight: of the distance from it (lambda).
        options: CoOp's own.
    """

    def __init__(self, clip: FrozenCLIP, classnames: Sequence[str], *, template: str, weight: float = 8.0, **options):
        self.check(template=template, weight=weight, **options)
        super().__init__(clip, classnames, **options)
        self.weight = weight
        self.teacher = HandCrafted(clip, self.classnames, [template])

    @classmethod
    def check(cls, *, template: str = "{}", weight: float = 8.0, **options) -> None:
        """Raises CoopError for options that no backbone could serve."""
        check_template("method.template", template)
        if weight < 0:
            raise CoopError(f"method.weight={weight}: must not be negative")
        super().check(**options)

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        text_features = self.text_features()
        logits = self.logits_of(batch.image_features, text_features)
        distance = 1 - F.cosine_similarity(text_features, self.teacher(), dim=1, eps=1e-7).mean()
        return F.cross_entropy(logits, batch.labels) + self.weight * distance, logits
