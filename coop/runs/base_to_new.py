"""Base-to-new generalization: trained on the first half of a data set's classes, tested on both halves."""

from typing import Any


def harmonic_mean(base: Any, new: Any) -> Any:
    """H = 2 base new / (base + new) (CoCoOp, section 4.1); 0 where both are 0.

    Args:
        base, new: accuracies on base and on new classes: numbers, or arrays and series of the same shape.
    """
    total = base + new
    return 2 * base * new / (total + (total == 0))
