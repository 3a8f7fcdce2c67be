"""Linear maps with frozen weights; on a CPU in float32 by oneDNN, with the weights laid out for it once.

Most of the text encoder's time goes into these products. torch's own `F.linear` lays its weights out anew in every
call; done once, which only weights that never change allow, a product takes about a seventh less time.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


class FrozenLinear:
    """scale * (x @ weight.T + bias), (.., I) to (.., O), differentiable in x alone.

    Args:
        weight: (O, I), read in place at every call unless it can be laid out.
        bias: (O).
        scale: of the result; costs nothing.
    """

    def __init__(self, weight: Tensor, bias: Tensor, scale: float = 1.0):
        self.weight, self.bias, self.scale, self.laid_out = weight, bias, scale, None
        if weight.device.type == "cpu" and weight.dtype == torch.float32 and torch.backends.mkldnn.is_available():
            scaled, layout = scale * weight.detach(), torch.ops.mkldnn._reorder_linear_weight
            self.laid_out = layout(scaled), scale * bias.detach(), layout(scaled.t().contiguous())

    def __call__(self, x: Tensor) -> Tensor:
        # torch.compile, while it looks on, cannot follow.
        other_precision = x.dtype != torch.float32 or torch.is_autocast_enabled(x.device.type)
        if self.laid_out and not (other_precision or torch.compiler.is_compiling()):
            return _LaidOut.apply(x, *self.laid_out)
        if self.scale == 1.0:
            return F.linear(x, self.weight, self.bias)
        rows = torch.addmm(self.bias, x.flatten(0, -2), self.weight.t(), beta=self.scale, alpha=self.scale)
        return rows.unflatten(0, x.shape[:-1])


class _LaidOut(torch.autograd.Function):
    """With the transposed weight for the gradient."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, transposed: Tensor) -> Tensor:
        ctx.transposed = transposed
        return torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, "none", [], "")

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        g = torch.ops.mkldnn._linear_pointwise(gradient.contiguous(), ctx.transposed, None, "none", [], "")
        return g, None, None, None
