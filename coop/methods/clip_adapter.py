"""CLIP-Adapter: a small residual network on the image features (Gao et al., IJCV 2024)."""

import logging
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coop.clip.backbone import FrozenCLIP, normalize
from coop.clip.handcrafted import HandCrafted
from coop.clip.templates import check_template
from coop.errors import CoopError
from coop.methods.base import Labelled, Method

log = logging.getLogger("coop")

# 0.2 first: the ratio of the authors' code, which holds where validation images do not decide.
RATIOS = (0.2, 0.4, 0.6, 0.8, 1.0)


class ClipAdapter(Method):
    """image_features become ratio * A(x) + (1 - ratio) * x, with A(x) = ReLU(W2 ReLU(W1 x)) (section 3.2, image side).

    The ratio is searched per data set, as in the paper: each of 0.2, 0.4 .. 1 trains an adapter of its own, all from
    the same start and on the same batches, each as if it were alone (the loss is their sum); the one that is best on
    the validation images stays. The authors apply A to features that are not normalised yet; A is homogeneous, so the
    direction, which is all that counts, is the same.

    Args:
        clip: the frozen CLIP.
        classnames: K class names.
        template: a prompt with `{}` where the class name goes.
        ratio: the residual ratio; None to search it.
        reduction: E over the width of the hidden layer.
    """

    transfers_to_other_classes = True
    works_without_validation = True  # the ratio is the authors'
    sized_by_training = ("down", "up", "ratios")

    def __init__(
        self,
        clip: FrozenCLIP,
        classnames: Sequence[str],
        *,
        template: str,
        ratio: float | None = None,
        reduction: int = 4,
    ):
        self.check(template, ratio, reduction)
        super().__init__(clip, classnames)
        width = clip.embed_dim
        if reduction > width:
            raise CoopError(f"method.reduction={reduction}: at most {width}, the width of this backbone's features")
        self.prompts = HandCrafted(clip, self.classnames, [template])
        ratios = RATIOS if ratio is None else (ratio,)
        down, up = nn.Linear(width, width // reduction, bias=False), nn.Linear(width // reduction, width, bias=False)
        # R adapters, one per ratio: (R, E / reduction, E), (R, E, E / reduction) and (R).
        self.down = nn.Parameter(down.weight.detach().repeat(len(ratios), 1, 1))
        self.up = nn.Parameter(up.weight.detach().repeat(len(ratios), 1, 1))
        self.register_buffer("ratios", torch.tensor(ratios))

    @classmethod
    def check(cls, template: str, ratio: float | None = None, reduction: int = 4) -> None:
        """Raises CoopError for a ratio or a reduction that can't be."""
        check_template("method.template", template)
        if ratio is not None and not 0 < ratio <= 1:
            raise CoopError(f"method.ratio={ratio}: must be above 0 and at most 1, or null to search it")
        if reduction < 1:
            raise CoopError(f"method.reduction={reduction}: must be at least 1")

    def forward(self) -> Tensor:
        return self.prompts()

    def _adapted(self, image_features: Tensor, first: int) -> Tensor:
        """image_features (B, E) as the first so many adapters see them, (R, B, E), L2-normalised."""
        down, up, ratios = self.down[:first], self.up[:first], self.ratios[:first, None, None]
        hidden = F.relu(image_features @ down.mT.to(image_features.dtype))
        adapted = F.relu(hidden @ up.mT.to(hidden.dtype))
        return normalize((ratios * adapted + (1 - ratios) * image_features).flatten(0, 1)).unflatten(0, (first, -1))

    def logits(self, image_features: Tensor) -> Tensor:
        """Logits (B, K) of the first adapter, the only one once the ratio is chosen."""
        return super().logits(self._adapted(image_features, first=1)[0])

    def loss(self, image_features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = super().logits(self._adapted(image_features, first=len(self.ratios)))
        return sum(F.cross_entropy(each, labels) for each in logits), logits[0]

    @torch.no_grad()
    def select(self, labelled: Labelled) -> None:
        if len(self.ratios) == 1:
            return
        (features,), labels = labelled("val")
        best = 0
        if len(labels):
            device = self.clip.device
            logits = super().logits(self._adapted(features.to(device), first=len(self.ratios)))
            best = (logits.argmax(dim=2) == labels.to(device)).sum(dim=1).argmax().item()
        else:
            log.warning("clip_adapter: no validation images to choose the ratio on; it is %g", self.ratios[0])
        for name in self.sized_by_training:
            tensor = getattr(self, name)
            tensor.data = tensor.data[best : best + 1].clone()
        self.chosen = {"ratio": round(self.ratios.item(), 6)}
