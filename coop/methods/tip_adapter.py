"""Tip-Adapter: a cache of the training images beside the zero-shot classifier (Zhang et al., ECCV 2022)."""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from coop.clip.backbone import FrozenCLIP, normalize
from coop.clip.handcrafted import HandCrafted
from coop.clip.templates import check_templates
from coop.errors import CoopError
from coop.methods.base import Labelled, Method

log = logging.getLogger("coop")

BETA_STEPS, ALPHA_STEPS, SEARCH_FROM = 200, 20, 0.1


class TipAdapter(Method):
    """logits = scale * x t^T + alpha * exp(-beta * (1 - x keys^T)) one_hot(labels) (sections 3.1 and 3.2).

    Keys are the features of the N training images, averaged over their views, then normalised; labels theirs. alpha
    and beta are searched on the validation images, after training where keys are trained: 20 and 200 equal steps from
    0.1 to below their maxima; the first best, by beta, then alpha.

    Args:
        clip: the frozen CLIP.
        classnames: K class names.
        templates: prompts with `{}` where the class name goes.
        train_keys: train the keys (Tip-Adapter-F).
        alpha: the residual ratio while keys are trained, and where there is no validation image.
        beta: the sharpness, likewise.
        search: whether alpha and beta are searched.
        alpha_max: where the search ends.
        beta_max: where the search ends.
        scale: of the zero-shot logits, 100 with the authors; None for the CLIP's own.
    """

    transfers_to_other_classes = False
    works_without_validation = True  # alpha and beta stay
    sized_by_training = ("keys", "labels")
    feature_kind = "raw"

    def __init__(
        self, clip: FrozenCLIP, classnames: Sequence[str], *, templates: list[str], train_keys: bool = False,
        alpha: float = 1.17, beta: float = 1.0, search: bool = True, alpha_max: float = 3.0, beta_max: float = 7.0,
        scale: float | None = None,
    ):  # fmt: skip
        self.check(templates, alpha, beta, alpha_max, beta_max, scale)
        super().__init__(clip, classnames)
        self.prompts = HandCrafted(clip, self.classnames, templates)
        self.search, self.alpha_max, self.beta_max, self.scale = search, alpha_max, beta_max, scale
        self.keys = nn.Parameter(torch.empty(0, clip.embed_dim), requires_grad=train_keys)
        self.register_buffer("labels", torch.empty(0, dtype=torch.long))
        self.register_buffer("alpha", torch.tensor(float(alpha)))
        self.register_buffer("beta", torch.tensor(float(beta)))

    @classmethod
    def check(
        cls, templates: list[str], alpha: float = 1.17, beta: float = 1.0, alpha_max: float = 3.0,
        beta_max: float = 7.0, scale: float | None = None, **_,
    ) -> None:  # fmt: skip
        """Raises CoopError for numbers that are not positive or leave nothing to search."""
        check_templates("method.templates", templates)
        for key, value in {"alpha": alpha, "beta": beta, "scale": scale}.items():
            if value is not None and value <= 0:
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
        zero_shot, affinity = self._compared(image_features)
        return zero_shot + self.alpha * self._votes(affinity, self.beta)

    def _compared(self, image_features: Tensor) -> tuple[Tensor, Tensor]:
        """Zero-shot logits (B, K) and affinities to the keys (B, N)."""
        x = normalize(image_features)
        return self.logits_of(x, self.text_features(), self.scale), x @ self.keys.T.to(x.dtype)

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
        self.chosen = self._search(features.to(self.clip.device), labels.to(self.clip.device))
        self.alpha.fill_(self.chosen["alpha"])
        self.beta.fill_(self.chosen["beta"])

    def _search(self, features: Tensor, labels: Tensor) -> dict[str, float]:
        zero_shot, affinity = self._compared(features)
        alphas, betas = _steps(self.alpha_max, ALPHA_STEPS), _steps(self.beta_max, BETA_STEPS)
        factors = torch.tensor(alphas, device=features.device).to(zero_shot)[:, None, None]
        votes = (factors * self._votes(affinity, beta) for beta in betas)
        correct = torch.stack([((zero_shot + each).argmax(dim=2) == labels).sum(dim=1) for each in votes])
        beta, alpha = divmod(int(correct.flatten().argmax()), ALPHA_STEPS)  # the first of the best
        for key, last in (("alpha", alpha == ALPHA_STEPS - 1), ("beta", beta == BETA_STEPS - 1)):
            if last:
                log.warning("tip_adapter: the best %s is where its search ends; try a larger method.%s_max", key, key)
        return {"alpha": alphas[alpha], "beta": betas[beta]}


def _steps(end: float, count: int) -> list[float]:
    return [SEARCH_FROM + (end - SEARCH_FROM) * step / count for step in range(count)]
