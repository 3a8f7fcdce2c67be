"""Logistic regression, and the strength of its penalty chosen on images that it is not fitted to."""

import warnings

import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from coop.errors import CoopError

# CoOp, section 4.1, after Radford et al. 2021, appendix A.3: powers of ten, then bisection.
GRID = (6, 4, 2, 0, -2, -4, -6)
STEPS = 8
MAX_ITER = 1000
#: Features (N, E) and labels (N).
Samples = tuple[Tensor, Tensor]


def fit(samples: Samples, C: float) -> LogisticRegression:
    """Fit by L-BFGS, in float64. Raises CoopError where all labels are the same."""
    features, labels = samples
    if len(labels.unique()) < 2:
        raise CoopError("method=linear_probe: training images of at least two classes are needed")
    model = LogisticRegression(solver="lbfgs", C=C, max_iter=MAX_ITER)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # weak penalties of the grid; the last fit is looked at
        return model.fit(features.double().numpy(), labels.numpy())


def choose_C(train: Samples, val: Samples) -> float:
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


def hold_out(labels: Tensor) -> Tensor:
    """Which images (N) are held out: the last quarter of each class's, at least one. Raises CoopError if it has one."""
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        (index,) = torch.where(labels == label)
        if len(index) < 2:
            raise CoopError(
                "method=linear_probe: there are no validation images to choose C on, and a class has a single "
                "training image, so none can be held out; give a value, for instance method.C=0.3, or more shots"
            )
        held_out[index[-max(1, len(index) // 4) :]] = True
    return held_out
