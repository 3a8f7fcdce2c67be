"""Whether modules are still what they were: what is kept of their results is wrong once they are not."""

from collections.abc import Callable, Iterable, Sequence
from math import gcd

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

#: One call in so many reads a given weight in full.
TURNS = 16
#: Elements of a tensor that every call reads in full, and of a piece of a larger one.
SMALL, PIECE = 2**16, 2**20

HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
GLOBAL_HOOKS = [vars(torch_module)[f"_global{name}"] for name in HOOKS]

#: Modules, and tensors of further modules whose own hooks do not matter.
Parts = tuple[list[nn.Module], list[Tensor]]


class Snapshot:
    """Modules, their hooks and their tensors at one moment.

    `holds` notices at once, on every device: modules replaced, added or removed; hooks and parametrizations set or
    removed, torch's global module hooks too; a `forward` assigned to an instance; tensors replaced, moved or cast
    (`weight.data = ...` too), frozen or not; and all writes that torch counts (`load_state_dict`, an optimizer's
    step, in-place functions).

    torch does not count writes to `.data` (`weight.data.mul_(2)`) or through numpy. On a CPU they are noticed by
    content:

    * at once where they change a whole tensor, a whole row or column of a matrix, or anything in a tensor of at most
      65 536 elements (biases, norms, positional embeddings): one element of each row and column is compared;
    * at once, whatever they change, by `holds(thorough=True)`, which reads every element;
    * otherwise within 16 calls, each of which reads another sixteenth of all elements.

    Not noticed are changes that leave the sum of a piece's bits, read as integers, the same (two elements swapped),
    and on an accelerator whatever torch does not count: comparing would make every step wait for the device.

    Args:
        parts: gives the modules and tensors, each time as they are then.
        table: one of the tensors, of which only some rows matter: every call reads these in full, and no others.
        rows: (n) which.
    """

    def __init__(self, parts: Callable[[], Parts], table: Tensor | None = None, rows: Tensor | None = None):
        self._parts = parts
        with torch.inference_mode(False), torch.no_grad():
            roots, tensors = parts()
            self._modules = list(dict.fromkeys(module for root in roots for module in root.modules()))
            own = (t for m in self._modules for t in (*m._parameters.values(), *m._buffers.values()) if t is not None)
            self._tensors = [*own, *tensors]
            self._roots, self._marks = [*map(id, (*roots, *tensors))], _marks(self._modules)
            self._versions = [*map(_version, self._tensors)]
            # As long as this holds the memory, nothing else gets its address.
            self._memory = [(tensor.detach(), rows if tensor is table else None) for tensor in self._tensors]
            self._views: dict[torch.dtype, list[tuple[Tensor, Tensor | None]]] = {}
            self._pieces: list[Tensor] = []
            for tensor, wanted in self._memory:
                if tensor.device.type == "cpu" and tensor.numel():
                    large = wanted is None and tensor.numel() > SMALL and tensor.is_contiguous()
                    self._views.setdefault(tensor.dtype, []).append((_sample(tensor) if large else tensor, wanted))
                    self._pieces += _pieces(tensor) if large else ()
            self._sampled, self._sums, self._turn = self._samples(), _sums(self._pieces), 0

    @torch.compiler.disable
    @torch.no_grad()
    def holds(self, thorough: bool = False) -> bool:
        """Whether all is as it was; what that means is said above."""
        roots, tensors = self._parts()
        return (
            [*map(id, (*roots, *tensors))] == self._roots
            and _marks(self._modules) == self._marks
            and [*map(_version, self._tensors)] == self._versions
            and all(map(torch.equal, self._samples(), self._sampled))
            and self._sums_hold(thorough)
        )

    def _samples(self) -> list[Tensor]:
        return [torch.cat([_flat(*view) for view in views]) for views in self._views.values()]

    def _sums_hold(self, thorough: bool) -> bool:
        turn = slice(None) if thorough else slice(self._turn, None, TURNS)
        self._turn = (self._turn + 1) % TURNS
        return _sums(self._pieces[turn]) == self._sums[turn]


def hooked(modules: Iterable[nn.Module]) -> str | None:
    """What makes a module's call more than its own forward, the first of the modules; None if nothing does."""
    if any(GLOBAL_HOOKS):
        return "torch has hooks on all modules"
    for module in modules:
        if any(map(vars(module).get, HOOKS)):
            return f"{type(module).__name__} has a hook"
        if "forward" in vars(module):
            return f"the forward of {type(module).__name__} was replaced"
    return None


def _marks(modules: list[nn.Module]) -> list:
    return [*map(tuple, GLOBAL_HOOKS), *map(_mark, modules)]


def _mark(module: nn.Module) -> tuple:
    """A module's class (a parametrization changes it), what it holds, its hooks, and a forward of its own.

    Only a snapshot, which holds on to what it has seen, may compare ids.
    """
    own = vars(module)
    return (
        type(module),
        own.get("forward"),
        *map(id, (*own["_modules"].values(), *own["_parameters"].values(), *own["_buffers"].values())),
        *(tuple(own[hooks]) for hooks in HOOKS if own[hooks]),
    )


def _version(tensor: Tensor) -> tuple:
    counted = None if tensor.is_inference() else tensor._version
    return tensor.data_ptr(), counted, tensor.dtype, tensor.requires_grad


def _flat(view: Tensor, rows: Tensor | None) -> Tensor:
    return (view if rows is None else view.index_select(0, rows)).reshape(-1)


def _sample(tensor: Tensor) -> Tensor:
    """Of a matrix (O, I) at least one element of every row and every column.

    Of each s elements in a row after the other: with s < I no row is left out; with s <= O and no factor in common
    with I, the I places that a column can have in this sequence all come up.
    """
    rows, columns = len(tensor), tensor.numel() // len(tensor)
    step = next((s for s in range(min(rows, columns) - 1, 1, -1) if gcd(s, columns) == 1), 1)
    return tensor.view(-1)[::step]


def _pieces(tensor: Tensor) -> Sequence[Tensor]:
    """A whole tensor, as integers."""
    size, offset = tensor.element_size(), tensor.storage_offset()
    even = tensor.numel() * size % 8 == 0 and offset * size % 8 == 0
    return tensor.view(-1).view(torch.int64 if even else torch.uint8).split(PIECE)


def _sums(pieces: list[Tensor]) -> list[int]:
    return torch.stack([piece.sum() for piece in pieces]).tolist() if pieces else []
