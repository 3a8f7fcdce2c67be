"""Tip-Adapter: a cache of the training images beside the zero-shot classifier (Zhang et al., ECCV 2022)."""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from coop.clip.backbone import FrozenCLIP, normalize
from coop.clip.handcrafted import HandCrafted
from coop.clip.templates import check_template
from coop.errors import CoopError
from coop.methods.base import Labelled, Method

log = logging.getLogger("coop")

BETA_STEPS, ALPHA_STEPS, SEARCH_FROM = 200, 20, 0.1


class TipAdapter(Method):
    """logits = zero-shot logits + alpha * exp(-beta * (1 - x keys^T)) one_hot(labels) (sections 3.1 and 3.2).

    Keys are the features of the N training images (with `augmentation=views:V` the normalised mean over the views; the
    authors take 10), labels theirs. alpha and beta are searched on the validation images, after training where keys
    are trained: 20 and 200 equal steps from 0.1 to below their maxima; the first best, by beta, then alpha.

    Args:
        clip: the frozen CLIP.
        classnames: K class names.
        template: a prompt with `{}` where the class name goes.
        train_keys: train the keys (Tip-Adapter-F).
        alpha: the residual ratio while keys are trained, and where there is no validation image.
        beta: the sharpness, likewise.
        search: whether alpha and beta are searched.
        alpha_max: where the search ends.
        beta_max: where the search ends.
    """

    transfers_to_other_classes = False
    sized_by_training = ("keys", "labels")

    def __init__(
        self,
        clip: FrozenCLIP,
        classnames: Sequence[str],
        *,
        template: str,
        train_keys: bool = False,
        alpha: float = 1.17,
        beta: float = 1.0,
        search: bool = True,
        alpha_max: float = 3.0,
        beta_max: float = 7.0,
    ):
        self.check(template, alpha, beta, alpha_max, beta_max)
        super().__init__(clip, classnames)
        self.prompts = HandCrafted(clip, self.classnames, [template])
        self.search, self.alpha_max, self.beta_max = search, alpha_max, beta_max
        self.keys = nn.Parameter(torch.empty(0, clip.embed_dim), requires_grad=train_keys)
        self.register_buffer("labels", torch.empty(0, dtype=torch.long))
        self.register_buffer("alpha", torch.tensor(float(alpha)))
        self.register_buffer("beta", torch.tensor(float(beta)))

    @classmethod
    def check(
        cls,
        template: str,
        alpha: float = 1.17,
        beta: float = 1.0,
        alpha_max: float = 3.0,
        beta_max: float = 7.0,
        **_,
    ) -> None:
        """Raises CoopError for numbers that are not positive or leave nothing to search."""
        check_template("method.template", template)
        for key, value in {"alpha": alpha, "beta": beta}.items():
            if value <= 0:
                raise CoopError(f"method.{key}={value}: must be positive")
        for key, value in {"alpha_max": alpha_max, "beta_max": beta_max}.items():
            if value <= SEARCH_FROM:
                raise CoopError(f"method.{key}={value}: the search starts at {SEARCH_FROM}, so it must be above that")

    def prepare(self, labelled: Labelled) -> None:
        features, labels = labelled("train")
        self.keys.data = normalize(features.mean(dim=0)).to(self.keys)
        self.labels = labels.to(self.labels)

    def forward(self) -> Tensor:
        return self.prompts()

    def logits(self, image_features: Tensor) -> Tensor:
        affinity = image_features @ self.keys.T.to(image_features.dtype)
        return super().logits(image_features) + self.alpha * self._votes(affinity, self.beta)

    def _votes(self, affinity: Tensor, beta: Tensor | float) -> Tensor:
        """Affinities (B, N) to what the keys say for each class, (B, K)."""
        classes = torch.arange(len(self.classnames), device=self.labels.device)  # F.one_hot reads the labels back
        votes = (self.labels[:, None] == classes).to(affinity.dtype)
        return torch.exp(-beta * (1 - affinity)) @ votes

    @torch.no_grad()
    def select(self, labelled: Labelled) -> None:
        if not self.search:
            return
        (features,), labels = labelled("val")
        if not len(labels):
            log.warning("tip_adapter: no validation images, alpha and beta stay at %g and %g", self.alpha, self.beta)
            return
        features, labels = features.to(self.clip.device), labels.to(self.clip.device)
        alpha, beta = self._search(features, labels)
        self.alpha.fill_(alpha)
        self.beta.fill_(beta)
        self.chosen = {"alpha": alpha, "beta": beta}
        for key, value, last in (
            ("alpha", alpha, _steps(self.alpha_max, ALPHA_STEPS)[-1]),
            ("beta", beta, _steps(self.beta_max, BETA_STEPS)[-1]),
        ):
            if value == last:
                log.warning("tip_adapter: %s=%g is where its search ends; try a larger method.%s_max", key, value, key)

    def _search(self, features: Tensor, labels: Tensor) -> tuple[float, float]:
        zero_shot, affinity = super().logits(features), features @ self.keys.T.to(features.dtype)
        best, most = (0.0, 0.0), -1
        for beta in _steps(self.beta_max, BETA_STEPS):
            votes = self._votes(affinity, beta)
            for alpha in _steps(self.alpha_max, ALPHA_STEPS):
                correct = int(((zero_shot + alpha * votes).argmax(dim=1) == labels).sum())
                if correct > most:
                    best, most = (alpha, beta), correct
        return best


def _steps(end: float, count: int) -> list[float]:
    return [SEARCH_FROM + (end - SEARCH_FROM) * step / count for step in range(count)]
