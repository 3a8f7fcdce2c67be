"""Which tokens of a set of prompts have to be computed, and in which order they are laid out.

Integers only: no model, no device, no gradient. `coop.clip.text` explains why leaving the other tokens out is exact.

A prompt is cut after the token that the tower pools ([EOS]) and then falls into three consecutive parts:

    trunk      the beginning that all prompts share, [SOS] at least
    constants  if the trunk holds no context vector: what else stands before the prompt's first one
    own        everything else, [EOS] included

A shared context at the end, or the first half of one in the middle, is in the trunk, and nothing behind it is constant.
With a context in front, or one per class, the trunk is constant itself.

Prompts that go on alike behind the trunk (great white shark, great grey owl) share their own tokens, too, as far as
they agree: one of them, the owner, computes them. Such prompts lie next to each other, as many as fit a row.

Prompts lie in rows, one or several whole prompts to a row, and rows of equal width are stacked, so that no padding is
computed at all. How many prompts share a row matters for speed alone.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

ROW_WIDTH = 32  # 24 to 48 are about equally fast on a CPU; a longer prompt gets a row to itself
NO_KEY = -1


@dataclass(frozen=True)
class Rows:
    """A stack of N rows of R tokens.

    Attributes:
        prompt: (N, R) the prompt that each token belongs to; `NO_KEY` where a row of keys holds fewer than R.
        position: (N, R) its position in that prompt.
    """

    prompt: Tensor
    position: Tensor

    def sees(self, keys: "Rows", owner: Tensor) -> Tensor:
        """Causal attention within each prompt: (N, R, C), true where a token sees a key in the same row of `keys`.

        Args:
            keys: their prompts are owners, see `find_owners`.
            owner: (K, L), see there.
        """
        same_prompt = owner[self.prompt[:, :, None], keys.position[:, None, :]] == keys.prompt[:, None, :]
        return same_prompt & (keys.position[:, None, :] <= self.position[:, :, None])


@dataclass(frozen=True)
class Layout:
    """T tokens in the order in which they are computed: stack after stack, row after row.

    Attributes:
        stacks: the trunk as a single row, if it is computed here; then the prompts' rows, stacked by width.
        keys: for each stack, the constants (N, C) that its rows see.
        masks: for each stack, (N, R, P + C + R) which keys a token sees of trunk, constants and its own row. The trunk
            itself sees nothing before it, (1, P, P).
        base: (K,) position p of prompt k, if k owns it, is the (base[k] + p)-th token.
    """

    stacks: list[Rows]
    keys: list[Rows]
    masks: list[Tensor]
    base: Tensor

    @property
    def prompts(self) -> Tensor:
        """(T,) the prompt of each token; 0 in the trunk."""
        return torch.cat([rows.prompt.flatten() for rows in self.stacks])

    @property
    def positions(self) -> Tensor:
        """(T,) the position of each token in its prompt."""
        return torch.cat([rows.position.flatten() for rows in self.stacks])


@dataclass(frozen=True)
class Plan:
    """What to compute for K prompts.

    Attributes:
        own: own tokens, and the trunk if it holds a context vector: computed in every step.
        constants: constants, and the trunk if it holds none: computed once. Empty if the trunk holds a context vector.
        constants_seen: for each stack of `own`, which tokens (N, C) of `constants` its `keys` are.
        queries: (T',) the tokens of `own` that the tower pools, stack after stack, Q to a row; a row that has fewer is
            filled up with others.
        query_masks: for each stack, (N, Q, P + C + R) what they see.
        pooled: (K,) which of the queries is each prompt's.
    """

    own: Layout
    constants: Layout
    constants_seen: list[Tensor]
    queries: Tensor
    query_masks: list[Tensor]
    pooled: Tensor


def as_symbols(ids: Tensor, slots: Tensor, class_specific: bool) -> Tensor:
    """Prompts as numbers (K, L): where two agree up to a position, so do their states there. Learnt ones are negative.

    Args:
        ids: (K, L) token ids.
        slots: (K, L) index of the context vector at each position, -1 for a constant token.
        class_specific: whether each prompt has its own context vectors.
    """
    count, length = ids.shape
    first = length * torch.arange(count)[:, None] if class_specific else 0
    return torch.where(slots < 0, ids, -1 - slots - first)


def common_beginning(symbols: Tensor, end: Tensor) -> int:
    """P, the number of tokens that all prompts begin with, leaving each its pooled token.

    Args:
        symbols: (K, L), see `as_symbols`.
        end: (K,) position that the tower pools; nothing after it is computed.
    """
    alike = (symbols == symbols[:1]).all(0)
    return min(int(alike.int().cumprod(0).sum()), int(end.min()))


def build_plan(symbols: Tensor, end: Tensor, trunk: int) -> Plan:
    """Lay prompts out.

    Args:
        symbols: (K, L), see `as_symbols`.
        end: (K,), see `common_beginning`.
        trunk: P, common to these prompts and maybe to others.
    """
    learnt = symbols < 0
    trunk_learns = bool(learnt[:, :trunk].any())
    after_trunk = torch.full_like(end, trunk)
    first_learnt = torch.where(learnt.any(1), learnt.int().argmax(1), end).minimum(end)
    start = after_trunk if trunk_learns else first_learnt
    itself = torch.arange(len(symbols))[:, None].expand_as(symbols)
    constants = _lay_out(itself, after_trunk, start, trunk, computes_trunk=not trunk_learns)
    owner = find_owners(symbols, start, end)
    own = _lay_out(owner, start, end + 1, trunk, computes_trunk=trunk_learns)
    seen = [torch.where(k.prompt == NO_KEY, 0, constants.base[k.prompt] + k.position) for k in own.keys]
    last = own.base[owner.gather(1, end[:, None])[:, 0]] + end
    return Plan(own, constants, seen, *_queries(own, last))


def find_owners(symbols: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """For each position of each prompt, (K, L), the prompt that computes its own tokens there for it.

    In lexicographic order, what a prompt shares with any before it, it shares with the one just before it.

    Args:
        symbols: (K, L), see `as_symbols`.
        start: (K,) position of the first own token. Positions before it are given that token's owner.
        end: (K,) position of the last one.
    """
    order = torch.tensor(sorted(range(len(symbols)), key=symbols.tolist().__getitem__))
    ordered, start, end = symbols[order], start[order], end[order]
    shared = torch.zeros_like(order)  # how many tokens of a prompt others compute
    shared[1:] = (ordered[1:] == ordered[:-1]).int().cumprod(1).sum(1)
    room = 0
    for i, (agree, begin, stop) in enumerate(zip(shared.tolist(), start.tolist(), (end + 1).tolist(), strict=True)):
        size = max(stop - max(agree, begin), 0)
        if agree <= begin or size > room:
            shared[i], size, room = 0, stop - begin, max(ROW_WIDTH, stop - begin)
        room -= size
    position = torch.arange(symbols.shape[1])
    rank = torch.arange(len(order))[:, None]
    owner = torch.where(position >= shared[:, None], rank, 0).cummax(0).values
    owner = owner.gather(1, position.maximum(start[:, None]))
    return torch.empty_like(owner).index_copy_(0, order, order[owner])


def distinct_tokens(
    layout: Layout, ids: Tensor, slots: Tensor, class_specific: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Find tokens that are the same at the same position: in the first layer, they are computed once.

    Returns:
        (2, U) id and position of the distinct constant tokens; (3, V) prompt (0 if the context is shared), slot and
        position of the distinct learnt ones; (T,) which of either kind each token is; (T,) whether it is learnt.
    """
    prompt, position = layout.prompts, layout.positions
    slot = slots[prompt, position]
    learnt = slot >= 0
    owner = prompt if class_specific else torch.zeros_like(prompt)
    index = torch.empty_like(slot)
    constants, index[~learnt] = torch.stack([ids[prompt, position], position])[:, ~learnt].unique(
        dim=1, return_inverse=True
    )
    learnts, index[learnt] = torch.stack([owner, slot, position])[:, learnt].unique(dim=1, return_inverse=True)
    return constants, learnts, index, learnt


def best_fit(sizes: list[int], width: int) -> tuple[list[int], list[int]]:
    """Best-fit decreasing bin packing: the row of each item and its offset there, no row longer than `width`."""
    with_room = [[] for _ in range(width + 1)]  # with_room[f]: the rows that have f free places
    row, offset, rows = [0] * len(sizes), [0] * len(sizes), 0
    for item in sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True):
        room = next((free for free in range(sizes[item], width) if with_room[free]), width)
        if room < width:
            row[item] = with_room[room].pop()
        else:
            row[item], rows = rows, rows + 1
        offset[item] = width - room
        with_room[room - sizes[item]].append(row[item])
    return row, offset


def _lay_out(owner: Tensor, start: Tensor, stop: Tensor, trunk: int, computes_trunk: bool) -> Layout:
    """Lay positions start..stop (K,) of every prompt out, seeing the trunk and its constants trunk..start."""
    stacks, base = _stack(owner, start, stop)
    keys = [_keys(rows, start, trunk) for rows in stacks]
    masks = []
    for rows, seen in zip(stacks, keys, strict=True):
        whole_trunk = torch.ones(*rows.prompt.shape, trunk, dtype=torch.bool)
        masks.append(torch.cat([whole_trunk, rows.sees(seen, owner), rows.sees(rows, owner)], dim=2))
    if not computes_trunk:
        return Layout(stacks, keys, masks, base)
    row = Rows(torch.zeros(1, trunk, dtype=torch.long), torch.arange(trunk)[None])
    nothing = Rows(row.prompt[:, :0], row.position[:, :0])
    causal = torch.ones(1, trunk, trunk, dtype=torch.bool).tril()
    return Layout([row, *stacks], [nothing, *keys], [causal, *masks], base + trunk)


def _stack(owner: Tensor, start: Tensor, stop: Tensor) -> tuple[list[Rows], Tensor]:
    """Pack what each prompt owns of positions start..stop (K,) into rows, stack rows of equal width; `Layout.base`."""
    position, itself = torch.arange(owner.shape[1]), torch.arange(len(owner))
    within = (position >= start[:, None]) & (position < stop[:, None])
    sizes = (within & (owner == itself[:, None])).sum(1)
    first = stop - sizes
    group = owner.gather(1, start[:, None])[:, 0]  # prompts that share own tokens share the first one
    totals = torch.zeros_like(sizes).index_add_(0, group, sizes)
    row, offset = (torch.tensor(t) for t in best_fit(totals.tolist(), max(ROW_WIDTH, int(totals.max()))))
    widths = torch.zeros_like(sizes).index_add_(0, row, totals)
    by_width = widths.argsort(stable=True)
    row_begin = torch.empty_like(widths)
    row_begin[by_width] = widths[by_width].cumsum(0) - widths[by_width]
    by_group = group.argsort(stable=True)
    before = torch.empty_like(sizes)  # in the group
    before[by_group] = sizes[by_group].cumsum(0) - sizes[by_group] - (totals.cumsum(0) - totals)[group[by_group]]
    base = (row_begin[row] + offset)[group] + before - first

    prompt, step = _enumerate(sizes)
    order = (base[prompt] + first[prompt] + step).argsort()
    prompt, position = prompt[order], (first[prompt] + step)[order]
    distinct, count = widths[widths > 0].unique(return_counts=True)
    lengths = (distinct * count).tolist()
    pieces = zip(prompt.split(lengths), position.split(lengths), distinct.tolist(), strict=True)
    return [Rows(p.view(-1, width), q.view(-1, width)) for p, q, width in pieces], base


def _keys(rows: Rows, start: Tensor, trunk: int) -> Rows:
    """The constants (positions trunk..start of each prompt) that the prompts of each row see, side by side."""
    begins = rows.position == start[rows.prompt]
    row, prompt = begins.nonzero()[:, 0], rows.prompt[begins]
    sizes = start[prompt] - trunk
    widths = torch.zeros(len(rows.prompt), dtype=torch.long).index_add_(0, row, sizes)
    offset = sizes.cumsum(0) - sizes - (widths.cumsum(0) - widths)[row]

    owner, step = _enumerate(sizes)
    keys = Rows(*torch.tensor([NO_KEY, 0])[:, None, None].repeat(1, len(widths), int(widths.max())))
    keys.prompt[row[owner], offset[owner] + step] = prompt[owner]
    keys.position[row[owner], offset[owner] + step] = trunk + step
    return keys


def _queries(layout: Layout, pooled: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
    """`Plan.queries`, `Plan.query_masks` and `Plan.pooled`, of the tokens (K,) that the tower pools."""
    queries, query_masks, place, begin, found = [], [], torch.empty_like(pooled), 0, 0
    for mask in layout.masks:
        count, width, _ = mask.shape
        here = ((pooled - begin) // (count * width) == 0).nonzero()[:, 0]
        tokens, which = (pooled[here] - begin).unique(return_inverse=True)
        row = tokens // width
        per_row = row.bincount(minlength=count)
        column = torch.arange(len(row)) - (per_row.cumsum(0) - per_row)[row]
        table = torch.zeros(count, int(per_row.max()), dtype=torch.long)
        table[row, column] = tokens % width
        place[here] = (found + row * table.shape[1] + column)[which]
        rows = torch.arange(count)[:, None]
        queries.append((begin + rows * width + table).flatten())
        query_masks.append(mask[rows, table])
        begin, found = begin + count * width, found + table.numel()
    return torch.cat(queries), query_masks, place


def _enumerate(sizes: Tensor) -> tuple[Tensor, Tensor]:
    """For runs of these sizes one after the other: the run that each element belongs to, and its place in the run."""
    owner = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
    return owner, torch.arange(len(owner)) - (sizes.cumsum(0) - sizes)[owner]
