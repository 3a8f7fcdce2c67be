"""The learning rate as a pure function of the epoch, and the published numbers of epochs."""

import math
from collections.abc import Mapping

#: Up to so many shots, so many epochs (CoOp, section 4.1).
PAPER_EPOCHS = {1: 50, 4: 100, 16: 200}


def learning_rate(
    epoch: int,
    max_epochs: int,
    base_lr: float = 0.002,
    warmup_epochs: int = 1,
    warmup_lr: float = 1e-5,
    eta_min: float = 0.0,
) -> float:
    """Learning rate of one epoch: a constant warm-up, then a cosine over `max_epochs` (CoOp, section 4.1).

    Where a schedule goes by steps, "epoch" means step throughout.

    A closed form, so that a resumed run has the same value to the last digit. The cosine starts after the warm-up and
    its period counts all epochs, as in the original: the last epoch does not reach zero.

    Args:
        epoch: from 0.
        max_epochs: T, the number of epochs of the run.
        base_lr: the value right after the warm-up.
        warmup_epochs: number of epochs at `warmup_lr`.
        warmup_lr: the value during the warm-up.
        eta_min: what the cosine ends near.
    """
    if epoch < warmup_epochs:
        return warmup_lr
    return eta_min + (base_lr - eta_min) * (1 + math.cos(math.pi * (epoch - warmup_epochs) / max_epochs)) / 2


def linear_warmup(steps: int, base_lr: float, warmup_steps: int, first_lr: float = 1e-5) -> list[float]:
    """Learning rates of all steps: `first_lr`, a rise to `base_lr`, then a cosine over as many steps as the run has."""
    rates = [base_lr * t / warmup_steps for t in range(warmup_steps)]
    rates += [base_lr * (1 + math.cos(math.pi * t / steps)) / 2 for t in range(steps - warmup_steps)]
    return ([first_lr, *rates[1:]] if warmup_steps else rates)[:steps]


def epochs_by_shots(shots: int, rule: Mapping[int, int] | None = None) -> int:
    """The number of epochs for so many shots, by the paper's rule where there is no other.

    Args:
        shots: for each class; -1 for all images.
        rule: up to so many shots, so many epochs; for more shots the last of them.
    """
    rule = rule or PAPER_EPOCHS
    return next((rule[most] for most in sorted(rule) if 0 < shots <= most), rule[max(rule)])
