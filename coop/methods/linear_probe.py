"""Logistic regression on frozen image features."""

import logging
import warnings
from collections.abc import Sequence

import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from coop.clip.backbone import FrozenCLIP
from coop.errors import CoopError
from coop.methods.base import Labelled, Method

log = logging.getLogger("coop")

# CoOp, section 4.1, after Radford et al. 2021, appendix A.3: powers of ten, then bisection.
GRID = (6, 4, 2, 0, -2, -4, -6)
STEPS = 8
MAX_ITER = 1000


class LinearProbe(Method):
    """scikit-learn's logistic regression (L-BFGS, at most 1000 iterations) on image features.

    C, the inverse strength of the L2 penalty, is the one with the best accuracy on the validation images: the best of
    1e6, 1e4, .. 1e-6, then 8 steps of bisection of the exponent within one decade to either side. Ties go to the
    first of the grid, and to the left of a bisection. Without validation images (ImageNet), a quarter of each class's
    training images, at least one, is held out for this choice, then all are fitted with it.

    Args:
        clip: the frozen CLIP.
        classnames: K class names.
        C: a value to take instead of the search.
        normalized: L2-normalise the features; CoOp's released code fits them as the tower gives them, where a penalty
            of the same strength means something else.

    Raises:
        CoopError: in `prepare`, with nothing to choose C on, or fewer than two classes.
    """

    transfers_to_other_classes = False
    works_without_validation = True  # C is chosen on training images that are held out
    fitted = ("weight", "bias")

    def __init__(self, clip: FrozenCLIP, classnames: Sequence[str], *, C: float | None = None, normalized: bool = True):
        self.check(C)
        super().__init__(clip, classnames)
        self.C, self.feature_kind = C, "normalized" if normalized else "raw"
        classes = len(classnames)
        self.register_buffer("weight", torch.zeros(classes, clip.embed_dim))
        self.register_buffer("bias", torch.zeros(classes))

    @classmethod
    def check(cls, C: float | None = None, **_) -> None:
        """Raises CoopError for a C that is not positive."""
        if C is not None and C <= 0:
            raise CoopError(f"method.C={C}: must be positive, or null to choose it on validation images")

    def prepare(self, labelled: Labelled) -> None:
        train, val = _samples(labelled("train")), _samples(labelled("val"))
        if self.C is not None:
            C = self.C
        elif len(val[1]):
            C = choose_C(train, val)
        else:
            C = choose_C(*_hold_out(*labelled("train")))
        fitted = fit(train, C)
        if fitted.n_iter_.max() >= MAX_ITER:
            log.warning("linear_probe: L-BFGS stopped at %d iterations, not converged (C=%g)", MAX_ITER, C)
        self._take(fitted)
        self.chosen = {"C": C}

    def _take(self, fitted: LogisticRegression) -> None:
        weight, bias = torch.tensor(fitted.coef_), torch.tensor(fitted.intercept_)
        if len(fitted.classes_) == 2:  # scikit-learn keeps the second class's logit alone
            weight, bias = torch.cat([torch.zeros_like(weight), weight]), torch.cat([torch.zeros_like(bias), bias])
        rows = torch.tensor(fitted.classes_)
        self.bias.fill_(-torch.inf)  # a class without training images is never predicted
        self.weight[rows], self.bias[rows] = weight.to(self.weight), bias.to(self.bias)

    def logits(self, image_features: Tensor) -> Tensor:
        return image_features @ self.weight.T.to(image_features.dtype) + self.bias.to(image_features.dtype)


def fit(samples: tuple[Tensor, Tensor], C: float) -> LogisticRegression:
    """Fit image_features (N, E) and labels (N).

    Raises:
        CoopError: all labels are the same.
    """
    features, labels = samples
    if len(labels.unique()) < 2:
        raise CoopError("method=linear_probe: training images of at least two classes are needed")
    model = LogisticRegression(solver="lbfgs", C=C, max_iter=MAX_ITER)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # weak penalties of the grid; the last fit is looked at
        return model.fit(features.double().numpy(), labels.numpy())


def choose_C(train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor]) -> float:
    """The C of the best validation accuracy: grid, then bisection of the exponent."""
    correct: dict[float, int] = {}

    def score(exponent: float) -> int:
        if exponent not in correct:
            predicted = fit(train, 10.0**exponent).predict(val[0].double().numpy())
            correct[exponent] = int((predicted == val[1].numpy()).sum())
        return correct[exponent]

    peak = max(GRID, key=score)
    left, right = peak - 1.0, peak + 1.0
    for _ in range(STEPS):
        middle = (left + right) / 2
        if score(left) < score(right):
            best, left = right, middle
        else:
            best, right = left, middle
    return 10.0**best


def _samples(labelled: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Every view a sample of its own: features (V, N, E) to (V * N, E), with labels to match."""
    features, labels = labelled
    return features.flatten(0, 1), labels.repeat(len(features))


def _hold_out(features: Tensor, labels: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """A quarter of each class's images, the last ones, apart: (rest), (held out)."""
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        (index,) = torch.where(labels == label)
        if len(index) < 2:
            raise CoopError(
                "method=linear_probe: there are no validation images to choose C on, and a class has a single "
                "training image, so none can be held out; give a value, for instance method.C=0.3, or more shots"
            )
        held_out[index[-max(1, len(index) // 4) :]] = True
    log.info("linear_probe: no validation images, C is chosen on %d held-out training images", held_out.sum())
    return _samples((features[:, ~held_out], labels[~held_out])), _samples((features[:1, held_out], labels[held_out]))
