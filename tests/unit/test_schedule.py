"""The closed form equals the chained schedulers that it replaces, for any number of epochs."""

import math

import pytest
import torch

from coop import learning_rate
from coop.optim.schedule import linear_warmup


def chained(epochs: int, base_lr: float, warmup_epochs: int, warmup_lr: float) -> list[float]:
    """Learning rates of torch's cosine schedule, started after a constant warm-up."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=base_lr)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)
    rates = [warmup_lr] * warmup_epochs
    while len(rates) < epochs:
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        cosine.step()
    return rates[:epochs]


@pytest.mark.parametrize("epochs", [1, 2, 3, 7, 50, 100, 200])
@pytest.mark.parametrize(("base_lr", "warmup_epochs", "warmup_lr"), [(0.002, 1, 1e-5), (0.1, 0, 1e-5), (0.01, 3, 1e-4)])
def test_equals_warm_up_followed_by_torchs_cosine(epochs, base_lr, warmup_epochs, warmup_lr):
    rates = [learning_rate(epoch, epochs, base_lr, warmup_epochs, warmup_lr) for epoch in range(epochs)]
    assert rates == pytest.approx(chained(epochs, base_lr, warmup_epochs, warmup_lr), abs=1e-12)


def test_values_that_can_be_worked_out_by_hand():
    assert learning_rate(0, 50) == 1e-5
    assert learning_rate(1, 50) == 0.002
    assert learning_rate(26, 50) == pytest.approx(0.001, abs=1e-15)
    assert learning_rate(49, 50) == pytest.approx(0.001 * (1 - math.cos(2 * math.pi / 50)), abs=1e-15)
    assert learning_rate(1, 4, base_lr=1.0, warmup_epochs=0) == pytest.approx((1 + math.sqrt(0.5)) / 2, abs=1e-15)


def test_never_reaches_zero_within_a_run():
    assert all(learning_rate(epochs - 1, epochs) > 0 for epochs in range(1, 300))


def test_a_linear_warm_up_by_hand():
    """Lin et al., CVPR 2023: 1e-5 at first whatever the rate, a rise, a cosine over as many steps as the run has."""
    assert linear_warmup(8, 0.4, 4) == pytest.approx([1e-5, 0.1, 0.2, 0.3, 0.4, *_half_cosine(0.4, 8)])
    assert linear_warmup(3, 0.4, 0) == pytest.approx([0.4, 0.3, 0.1])
    assert linear_warmup(2, 0.4, 50) == pytest.approx([1e-5, 0.008])


def _half_cosine(rate: float, steps: int) -> list[float]:
    return [rate * (1 + math.cos(math.pi * t / steps)) / 2 for t in (1, 2, 3)]
