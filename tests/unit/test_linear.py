"""Frozen linear maps: laid out for oneDNN or not, they are the plain product, and differentiable in their input."""

import pytest
import torch

from coop.clip.text.onednn import FrozenLinear


@pytest.mark.parametrize("scale", [1.0, 1.702])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
@pytest.mark.parametrize("tokens", [1, 7, 300])
def test_equals_the_plain_product(scale, dtype, tolerance, tokens):
    torch.manual_seed(tokens)
    weight, bias = torch.randn(48, 32, dtype=dtype) / 6, torch.randn(48, dtype=dtype)
    x = torch.randn(tokens, 32, dtype=dtype, requires_grad=True)
    seen = torch.randn(tokens, 48, dtype=dtype)

    got = FrozenLinear(weight, bias, scale)(x)
    (gradient,) = torch.autograd.grad((got * seen).sum(), x)

    torch.testing.assert_close(got, scale * (x @ weight.T + bias), atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(gradient, scale * seen @ weight, atol=tolerance, rtol=tolerance)


def test_takes_gradients_and_inputs_that_are_not_contiguous():
    torch.manual_seed(0)
    weight, bias, seen = torch.randn(8, 4), torch.randn(8), torch.randn(8, 5)
    x = torch.randn(4, 5, requires_grad=True)
    got = FrozenLinear(weight, bias)(x.T)
    (gradient,) = torch.autograd.grad((got.T * seen).sum(), x)
    torch.testing.assert_close(got, x.T @ weight.T + bias)
    torch.testing.assert_close(gradient, (seen.T @ weight).T)


def test_only_single_precision_on_a_cpu_is_laid_out():
    assert FrozenLinear(torch.randn(4, 4), torch.randn(4)).laid_out is not None
    assert FrozenLinear(torch.randn(4, 4).double(), torch.randn(4).double()).laid_out is None
    assert FrozenLinear(torch.randn(4, 4).bfloat16(), torch.randn(4).bfloat16()).laid_out is None


def test_autocast_keeps_its_precision():
    linear, x = FrozenLinear(torch.randn(4, 4), torch.randn(4)), torch.randn(3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x).dtype == torch.bfloat16
    assert linear(x).dtype == torch.float32
