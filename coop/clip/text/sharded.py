"""The text encoder's work shared out among the processes of a distributed run.

Data parallelism alone would have every process encode all K prompts again, so that more devices would not
make it faster. Here each of W processes encodes ceil(K / W) of them and receives the others' features.

The gradient comes out right without a word to the trainer. Let L_r be process r's loss and F_s the features that
process s encodes. Gathering with gradient hands process s the sum over r of dL_r / dF_s, hence s holds the gradient of
the sum of all losses through its own prompts; averaging over processes, as DistributedDataParallel does, gives the
gradient of the mean loss through all prompts: what one process with the whole batch would have.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from coop.clip.text.encoder import PromptEncoder
from coop.clip.text.plain import DeepPrompts


def is_distributed() -> bool:
    """Whether this process shares a run with others; known once the run has started, at the first forward, say."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def mean_over_processes(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Each tensor's mean over the processes of a distributed run, for gradients taken with `torch.autograd.grad`.

    DistributedDataParallel averages those of `backward()` alone. All processes must call it.
    """
    if not is_distributed():
        return list(tensors)
    means = [tensor / dist.get_world_size() for tensor in tensors]
    for mean in means:
        dist.all_reduce(mean)
    return means


class ShardedPromptEncoder(nn.Module):
    """`PromptEncoder` over all processes, each of which passes all K prompts: same call, same result, to rounding.

    Every call is collective: all processes must make it, in the same order (and backward through it if one does), with
    the same contexts and deep prompts. `class_chunk` applies within a process's share.
    """

    def __init__(self, model: nn.Module, ids: Tensor, slots: Tensor, class_specific: bool, **options):
        super().__init__()
        self.classes, self.class_specific = len(ids), class_specific
        world, rank = dist.get_world_size(), dist.get_rank()
        share = -(-self.classes // world)
        # Equal shares make the gathered shapes equal; what goes beyond K repeats the last prompt and is dropped below.
        self.mine = torch.arange(rank * share, (rank + 1) * share).clamp(max=self.classes - 1)
        self.encoder = PromptEncoder(model, ids.cpu()[self.mine], slots.cpu()[self.mine], class_specific, **options)

    def forward(self, ctx: Tensor, deep: DeepPrompts | None = None, normalize: bool = True) -> Tensor:
        """(*, K, E) text features, see `PromptEncoder.forward`."""
        mine = self.mine.to(ctx.device)
        ctx = ctx.index_select(-3, mine) if self.class_specific else ctx
        deep = {layer: v.index_select(0, mine) if v.ndim == 3 else v for layer, v in (deep or {}).items()}
        features = self.encoder(ctx, deep, normalize)
        return _GatherWithGradient.apply(features.movedim(-2, 0))[: self.classes].movedim(0, -2)


class _GatherWithGradient(torch.autograd.Function):
    """Rows (n, ..) of every process, (W * n, ..), on every process; backwards, the sum of what each says of mine."""

    @staticmethod
    def forward(ctx, mine: Tensor) -> Tensor:
        everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(everyone, mine.contiguous())
        return torch.cat(everyone)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]
