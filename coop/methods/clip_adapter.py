"""CLIP-Adapter: a small residual network on the image features (Gao et al., IJCV 2024)."""

from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coop.clip.backbone import FrozenCLIP, normalize
from coop.clip.handcrafted import HandCrafted
from coop.clip.templates import Template
from coop.errors import CoopError
from coop.methods.base import Count, Labeled, Method
from coop.optim.grid import first_best
from coop.system.validation import Rule

# 0.2 first: the ratio of the authors' code, which holds where validation images do not decide.
RATIOS = (0.2, 0.4, 0.6, 0.8, 1.0)
Ratio = Annotated[float, Rule(lambda ratio: 0 < ratio <= 1, "must be above 0 and at most 1, or null to search it")]


class ClipAdapter(Method):
    """image_features become ratio * A(x) + (1 - ratio) * x, with A(x) = ReLU(W2 ReLU(W1 x)) (section 3.2).

    The ratio is searched per data set, as in the paper: each of 0.2, 0.4 .. 1 trains an adapter as if it were alone,
    all from the same start and on the same batches; the best on the validation images stays. The authors apply A to
    features that are not normalized; A is homogeneous, so the direction, which is all that counts, is the same.

    Args:
        ratio: the residual ratio; None to search it.
        reduction: E over the width of the hidden layer.
    """

    works_without_validation = True  # the ratio is the authors'
    sized_by_training = ("down", "up", "ratios")

    def __init__(self, clip: FrozenCLIP, classnames: Sequence[str], *, template: Template, ratio: Ratio | None = None,
                 reduction: Count = 4):  # fmt: skip
        super().__init__(clip, classnames)
        if reduction > (width := clip.embed_dim):
            raise CoopError(f"method.reduction={reduction}: at most {width}, the width of this backbone's features")
        self.prompts = HandCrafted(clip, self.classnames, [template])
        self.register_buffer("ratios", torch.tensor(RATIOS if ratio is None else [ratio]))
        down, up = nn.Linear(width, width // reduction, bias=False), nn.Linear(width // reduction, width, bias=False)
        # R adapters, one per ratio: (R, E / reduction, E) and (R, E, E / reduction).
        self.down, self.up = (nn.Parameter(x.weight.detach().repeat(len(self.ratios), 1, 1)) for x in (down, up))

    def forward(self) -> Tensor:
        return self.prompts()

    def _by_each(self, x: Tensor, count: int | None = None) -> Tensor:
        """Logits (R, B, K) of image_features (B, E) by the first so many adapters, all if not given."""
        down, up, ratios = (tensor[:count] for tensor in (self.down, self.up, self.ratios[:, None, None]))
        adapted = F.relu(F.relu(x @ down.mT.to(x.dtype)) @ up.mT.to(x.dtype))
        return super().logits(normalize(ratios * adapted + (1 - ratios) * x))

    def logits(self, image_features: Tensor) -> Tensor:
        return self._by_each(image_features, 1)[0]  # the only one once the ratio is chosen

    def loss(self, image_features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = self._by_each(image_features)
        return sum(F.cross_entropy(each, labels) for each in logits), logits[0]

    @torch.no_grad()
    def select(self, labeled: Labeled) -> None:
        if len(self.ratios) > 1:
            found = self.to_choose_on(labeled, "the ratio stays at %g", self.ratios[0])
            _, best = first_best([self._by_each(found[0])], found[1]) if found else (0, 0)
            for name in self.sized_by_training:
                tensor = getattr(self, name)
                tensor.data = tensor.data[best : best + 1].clone()
            self.chosen = {"ratio": round(self.ratios.item(), 6)}
