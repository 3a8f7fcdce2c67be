"""Tip-Adapter: a cache of the training images beside the zero-shot classifier (Zhang et al., ECCV 2022)."""

from collections.abc import Callable, Sequence
from typing import Annotated

import torch
from torch import Tensor, nn

from coop.clip.backbone import FrozenCLIP, normalize
from coop.clip.handcrafted import HandCrafted
from coop.clip.templates import Templates
from coop.methods.base import Labeled, Method, Positive
from coop.optim.grid import SEARCH_FROM, search_pair
from coop.system.validation import Rule

SearchEnd = Annotated[
    float, Rule(lambda end: end > SEARCH_FROM, f"must be above {SEARCH_FROM}, where the search starts")
]


class TipAdapter(Method):
    """logits = scale * x t^T + alpha * exp(-beta * (1 - x keys^T)) one_hot(labels) (sections 3.1 and 3.2).

    Keys are the features of the N training images, averaged over their views, then normalized. alpha and beta are
    searched on the validation images after training, in 20 and 200 equal steps; the first best, by beta, then alpha.

    Args:
        train_keys: train the keys (Tip-Adapter-F).
        alpha, beta: the residual ratio and the sharpness while keys are trained, and where nothing is searched.
        search, alpha_max, beta_max: whether they are searched, and where the search ends.
        scale: of the zero-shot logits, 100 with the authors; None for the CLIP's own.
    """

    transfers_to_other_classes = False
    works_without_validation = True  # alpha and beta stay
    sized_by_training = ("keys", "labels")
    feature_kind = "raw"

    def __init__(self, clip: FrozenCLIP, classnames: Sequence[str], *, templates: Templates, train_keys: bool = False,
                 alpha: Positive = 1.17, beta: Positive = 1.0, search: bool = True, alpha_max: SearchEnd = 3.0,
                 beta_max: SearchEnd = 7.0, scale: Positive | None = None):  # fmt: skip
        super().__init__(clip, classnames)
        self.prompts, self.scale = HandCrafted(clip, self.classnames, templates), scale
        self.search, self.ways = search, {"beta": (beta_max, 200), "alpha": (alpha_max, 20)}
        self.keys = nn.Parameter(torch.empty(0, clip.embed_dim), requires_grad=train_keys)
        self.register_buffer("labels", torch.empty(0, dtype=torch.long))
        self.register_buffer("alpha", torch.tensor(float(alpha)))
        self.register_buffer("beta", torch.tensor(float(beta)))

    def prepare(self, labeled: Labeled) -> None:
        features, labels = labeled("train")
        self.keys.data, self.labels = normalize(features.mean(dim=0)).to(self.keys), labels.to(self.labels)

    def forward(self) -> Tensor:
        return self.prompts()

    def logits(self, image_features: Tensor) -> Tensor:
        zero_shot, votes = self._sides(image_features)
        return zero_shot + self.alpha * votes(self.beta)

    def _sides(self, image_features: Tensor) -> tuple[Tensor, Callable[[Tensor | float], Tensor]]:
        """Zero-shot logits (B, K), and what the keys say for each class as a function of beta, (B, K)."""
        x = normalize(image_features)
        affinity = x @ self.keys.T.to(x.dtype)
        classes = torch.arange(len(self.classnames), device=x.device)  # F.one_hot would read the labels back
        one_hot = (self.labels[:, None] == classes).to(x.dtype)
        zero_shot = self.logits_of(x, self.text_features(), self.scale)
        return zero_shot, lambda beta: torch.exp(-beta * (1 - affinity)) @ one_hot

    @torch.no_grad()
    def select(self, labeled: Labeled) -> None:
        stay = "alpha and beta stay at %g and %g", self.alpha, self.beta
        if self.search and (found := self.to_choose_on(labeled, *stay)):
            zero_shot, votes = self._sides(found[0])
            self.chosen = search_pair(self.ways, lambda beta, alpha: zero_shot + alpha * votes(beta), found[1])
            self.alpha.fill_(self.chosen["alpha"])
            self.beta.fill_(self.chosen["beta"])
