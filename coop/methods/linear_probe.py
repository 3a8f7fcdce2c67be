"""Logistic regression on frozen image features."""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from coop.clip.backbone import FrozenCLIP
from coop.methods.base import Labeled, Method, Positive
from coop.optim.logistic import MAX_ITER, choose_C, fit, hold_out

log = logging.getLogger("coop")


class LinearProbe(Method):
    """scikit-learn's logistic regression (L-BFGS, at most 1000 iterations) on image features.

    C, the inverse strength of the L2 penalty, is the one with the best accuracy on the validation images: the best of
    1e6, 1e4, .. 1e-6, then 8 steps of bisection of the exponent within one decade to either side. Ties go to the
    first of the grid, and to the left of a bisection. Without validation images (ImageNet), a quarter of each class's
    training images, at least one, is held out for this choice, then all are fitted with it.

    Args:
        C: a value to take instead of the search.
        normalized: L2-normalize the features; CoOp's released code fits them as the tower gives them, where a penalty
            of the same strength means something else.
    """

    transfers_to_other_classes = False
    works_without_validation = True  # C is chosen on training images that are held out
    fitted = ("weight", "bias")

    def __init__(
        self, clip: FrozenCLIP, classnames: Sequence[str], *, C: Positive | None = None, normalized: bool = True
    ):
        super().__init__(clip, classnames)
        self.C, self.feature_kind = C, "normalized" if normalized else "raw"
        self.register_buffer("weight", torch.zeros(len(classnames), clip.embed_dim))
        self.register_buffer("bias", torch.zeros(len(classnames)))

    def prepare(self, labeled: Labeled) -> None:
        features, labels = labeled("train")
        C = self.C or self._choose(features, labels, labeled)
        fitted = fit(_samples(features, labels), C)
        if fitted.n_iter_.max() >= MAX_ITER:
            log.warning("linear_probe: L-BFGS stopped at %d iterations, not converged (C=%g)", MAX_ITER, C)
        weight, bias = torch.tensor(fitted.coef_), torch.tensor(fitted.intercept_)
        if len(fitted.classes_) == 2:  # scikit-learn keeps the second class's logit alone
            weight, bias = torch.cat([torch.zeros_like(weight), weight]), torch.cat([torch.zeros_like(bias), bias])
        rows = torch.tensor(fitted.classes_)
        self.bias.fill_(-torch.inf)  # a class without training images is never predicted
        self.weight[rows], self.bias[rows] = weight.to(self.weight), bias.to(self.bias)
        self.chosen = {"C": C}

    def _choose(self, features: Tensor, labels: Tensor, labeled: Labeled) -> float:
        val = _samples(*labeled("val"))
        if len(val[1]):
            return choose_C(_samples(features, labels), val)
        held_out = hold_out(labels)
        log.info("linear_probe: no validation images, C is chosen on %d held-out training images", held_out.sum())
        rest = _samples(features[:, ~held_out], labels[~held_out])
        return choose_C(rest, (features[0, held_out], labels[held_out]))

    def logits(self, image_features: Tensor) -> Tensor:
        return image_features @ self.weight.T.to(image_features.dtype) + self.bias.to(image_features.dtype)


def _samples(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Every view a sample of its own: features (V, N, E) to (V * N, E), with labels to match."""
    return features.flatten(0, 1), labels.repeat(len(features))
