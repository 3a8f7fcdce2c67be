"""The learning rate as a pure function of the epoch, and the paper's numbers of epochs."""

import math

EPOCHS_UP_TO_SHOTS = ((1, 50), (4, 100))
MOST_EPOCHS = 200


def learning_rate(
    epoch: int, max_epochs: int, base_lr: float = 0.002, warmup_epochs: int = 1, warmup_lr: float = 1e-5
) -> float:
    """Learning rate of one epoch: a constant warm-up, then a cosine over `max_epochs` (CoOp, section 4.1).

    A closed form, so that a resumed run has the same value to the last digit. The cosine starts after the warm-up and
    its period counts all epochs, as in the original: the last epoch does not reach zero.

    Args:
        epoch: from 0.
        max_epochs: T, the number of epochs of the run.
        base_lr: the value right after the warm-up.
        warmup_epochs: number of epochs at `warmup_lr`.
        warmup_lr: the value during the warm-up.
    """
    if epoch < warmup_epochs:
        return warmup_lr
    return base_lr * (1 + math.cos(math.pi * (epoch - warmup_epochs) / max_epochs)) / 2


def paper_epochs(shots: int) -> int:
    """The paper's number of epochs: 50 for 1 shot, 100 for 2 and 4, 200 for more (CoOp, section 4.1)."""
    return next((epochs for most, epochs in EPOCHS_UP_TO_SHOTS if 0 < shots <= most), MOST_EPOCHS)
