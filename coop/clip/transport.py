"""Optimal transport between small sets, many at a time."""

import torch
from torch import Tensor


@torch.no_grad()
def sinkhorn(similarity: Tensor, eps: float, max_iter: int, threshold: float) -> tuple[Tensor, Tensor]:
    """Entropic transport plans between uniform marginals, of cost 1 - similarity (Cuturi, NeurIPS 2013).

    Iterations end where the mean change of the row scalings over all problems falls below the threshold. On a CPU the
    loop ends there; elsewhere it goes on without changing anything, because asking would wait for the device.

    Args:
        similarity: (*, L, N), at least float32.
        eps: of the entropy.
        max_iter: the most iterations.
        threshold: of the mean change.

    Returns:
        Plans (*, L, N), without gradient, and how many iterations were made, a scalar tensor.
    """
    kernel = torch.exp((similarity - 1) / eps)
    rows, columns = (torch.ones_like(kernel.select(dim, 0)).unsqueeze(dim) for dim in (-1, -2))
    share, made = (1 / rows.shape[-2], 1 / columns.shape[-1]), torch.zeros((), dtype=torch.long, device=kernel.device)
    done = torch.zeros((), dtype=torch.bool, device=kernel.device)
    stops_here = kernel.device.type == "cpu" and not torch.compiler.is_compiling()
    for _ in range(max_iter):
        before = rows
        rows = torch.where(done, rows, share[0] / (kernel * columns).sum(dim=-1, keepdim=True))
        columns = torch.where(done, columns, share[1] / (kernel * rows).sum(dim=-2, keepdim=True))
        made = made + ~done
        done = done | ((rows - before).abs().mean() < threshold)
        if stops_here and done:
            break
    return rows * kernel * columns, made
