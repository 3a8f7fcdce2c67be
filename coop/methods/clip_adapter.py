"""CLIP-Adapter: a small residual network on the image features (Gao et al., IJCV 2024)."""

import logging
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coop.clip.backbone import FrozenCLIP, normalize
from coop.errors import CoopError
from coop.methods.base import Labelled, Method
from coop.methods.zero_shot import HandWritten, check_template

log = logging.getLogger("coop")

RATIOS = tuple(step / 10 for step in range(1, 11))


class ClipAdapter(Method):
    """image_features become ratio * A(x) + (1 - ratio) * x, with A(x) = ReLU(W2 ReLU(W1 x)) (section 3.2, image side).

    The authors apply A to features that are not normalised yet; A is homogeneous, so that the direction, which is all
    that counts, is the same.

    Args:
        clip: the frozen CLIP.
        classnames: K class names.
        template: a prompt with `{}` where the class name goes.
        ratio: the residual ratio of training.
        reduction: E over the width of the hidden layer.
        search: afterwards take that of the ratios 0.1, 0.2 .. 1 which is best on the validation images (the one of
            training if none is better).
    """

    def __init__(
        self,
        clip: FrozenCLIP,
        classnames: Sequence[str],
        *,
        template: str,
        ratio: float = 0.2,
        reduction: int = 4,
        search: bool = True,
    ):
        self.check(template, ratio, reduction)
        super().__init__(clip, classnames)
        width = self.joint_width
        if reduction > width:
            raise CoopError(f"method.reduction={reduction}: at most {width}, the width of this backbone's features")
        self.prompts = HandWritten(clip, self.classnames, [template])
        self.down = nn.Linear(width, width // reduction, bias=False)
        self.up = nn.Linear(width // reduction, width, bias=False)
        self.search = search
        self.register_buffer("ratio", torch.tensor(float(ratio)))

    @classmethod
    def check(cls, template: str, ratio: float = 0.2, reduction: int = 4, **_) -> None:
        """Raises CoopError for a ratio or a reduction that can't be."""
        check_template(template)
        if not 0 < ratio <= 1:
            raise CoopError(f"method.ratio={ratio}: must be above 0 and at most 1")
        if reduction < 1:
            raise CoopError(f"method.reduction={reduction}: must be at least 1")

    def forward(self) -> Tensor:
        return self.prompts()

    def logits(self, image_features: Tensor) -> Tensor:
        adapted = F.relu(self.up(F.relu(self.down(image_features))))
        return super().logits(normalize(self.ratio * adapted + (1 - self.ratio) * image_features))

    @torch.no_grad()
    def select(self, labelled: Labelled) -> None:
        (features,), labels = labelled("val")
        if not self.search:
            return
        if not len(labels):
            log.warning("clip_adapter: no validation images, the ratio stays at %g", self.ratio)
            return
        trained = self.ratio.item()
        features, labels = features.to(self.clip.device), labels.to(self.clip.device)

        def correct(ratio: float) -> int:
            self.ratio.fill_(ratio)
            return int((self.logits(features).argmax(dim=1) == labels).sum())

        best = max((trained, *RATIOS), key=correct)
        self.ratio.fill_(best)
        self.chosen = {"ratio": round(best, 6)}
