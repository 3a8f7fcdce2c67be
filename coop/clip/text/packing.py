"""Which tokens of a set of prompts have to be computed, and in which order they are laid out.

Integers only: no model, no device, no gradient. `coop.clip.text.encoder` says why leaving the others out is exact.

A prompt is cut after the token that the text encoder pools ([EOS]) and then falls into three consecutive parts:

    shared prefix    the beginning that all prompts have in common, [SOS] at least
    cached tokens    if the shared prefix holds no context vector: what else stands before the prompt's first one
    suffix tokens    everything else, [EOS] included

What stands before a prompt's first context vector is the same in every step: it is computed once, and its keys and
values are kept (a prefix KV cache). A shared context at the end, or the first half of one in the middle, is in the
shared prefix, and nothing behind it can be cached. With a context in front, or one per class, the shared prefix itself
is cached.

A worked example: "great white shark", "great grey owl" and "cat" with M = 2 shared context vectors v1, v2 at the end.

    position            0     1    2    3      4      5      6      7       8 .. 76
    prompt 0          [SOS]  v1   v2  great  white  shark    .    [EOS]    padding
    prompt 1          [SOS]  v1   v2  great  grey   owl      .    [EOS]    padding
    prompt 2          [SOS]  v1   v2  cat      .    [EOS]                  padding
                      '- shared prefix -'  '-------- suffix tokens --------'

1. The plain way computes 3 x 77 = 231 tokens. Up to [EOS] there are 8 + 8 + 6 = 22.
2. The shared prefix is computed once, not three times: 22 - 2 x 3 = 16.
3. Suffixes that begin alike share these tokens, too, as long as they lie in one row: prompt 0 computes "great" for
   prompt 1 (it is its owner there). 15 tokens are left.
4. Packing: suffixes of different lengths lie side by side in rows, without padding. Here all of them fit one row:

    stack 0, 1 row x 3     [SOS] v1 v2
    stack 1, 1 row x 12    great white shark . [EOS]  grey owl . [EOS]  cat . [EOS]

   The layers work on these 15 tokens as one flat batch. Only attention tells prompts apart: a row's keys are the
   shared prefix and the row itself, and a mask lets each token see what stands before it in its own prompt.

    query  \ key    [SOS] v1 v2   great white shark . [EOS]   grey owl . [EOS]   cat . [EOS]
    shark             x   x  x      x     x     x   -   -       -    -  -   -      -  -   -
    owl               x   x  x      x     -     -   -   -       x    x  -   -      -  -   -
    cat               x   x  x      -     -     -   -   -       -    -  -   -      x  -   -

5. The last layer computes keys and values of all 15 tokens, but queries, output and MLP of the three [EOS] alone: of
   the tokens 0 to 14 in the order of the stacks

    last layer: queries    7 11 14

   These three states, normalized and projected, are the text features (K, E).

With a context for each class, or from a layer on that has deep prompts for each class, the shared prefix is [SOS]
alone, which is cached, and each prompt computes all tokens behind it: 7 + 7 + 5 = 19.

Rows hold whole suffixes, one or several, about `ROW_WIDTH` tokens; rows of equal width are stacked. How many share a
row matters for speed alone.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

ROW_WIDTH = 32  # 24 to 48 are about equally fast on a CPU; a longer prompt gets a row to itself
NO_KEY = -1


@dataclass(frozen=True)
class Rows:
    """A stack of N rows of R tokens."""

    prompt: Tensor  # (N, R) the prompt that each token belongs to; `NO_KEY` where a row of keys holds fewer than R
    position: Tensor  # (N, R) its position in that prompt

    def sees(self, keys: "Rows", owner: Tensor) -> Tensor:
        """Causal attention within each prompt: (N, R, C), true where a token sees a key in the same row of `keys`.

        The keys' prompts are owners; those of all positions are (K, L), see `find_owners`.
        """
        same_prompt = owner[self.prompt[:, :, None], keys.position[:, None, :]] == keys.prompt[:, None, :]
        return same_prompt & (keys.position[:, None, :] <= self.position[:, :, None])


@dataclass(frozen=True)
class Layout:
    """T tokens in the order in which they are computed: stack after stack, row after row."""

    stacks: list[Rows]  # the prefix as a single row, if it is computed here; then the prompts' rows, stacked by width
    keys: list[Rows]  # for each stack, the cached tokens (N, C) that its rows see
    # For each stack, (N, R, P + C + R) which keys a token sees of prefix, cached tokens and its own row. The shared
    # prefix itself sees nothing before it, (1, P, P).
    masks: list[Tensor]
    base: Tensor  # (K,) position p of prompt k, if k owns it, is the (base[k] + p)-th token

    @property
    def prompts(self) -> Tensor:
        """(T,) the prompt of each token; 0 in the prefix."""
        return torch.cat([rows.prompt.flatten() for rows in self.stacks])

    @property
    def positions(self) -> Tensor:
        """(T,) the position of each token in its prompt."""
        return torch.cat([rows.position.flatten() for rows in self.stacks])


@dataclass(frozen=True)
class Plan:
    """What to compute for K prompts."""

    computed: Layout  # suffix tokens, and the shared prefix if it holds a context vector: computed in every step
    cached: Layout  # cached tokens, and the shared prefix if it holds no context vector: computed once
    cached_seen: list[Tensor]  # for each stack of `computed`, which tokens (N, C) of `cached` its `keys` are
    # (K, L) where in `computed` the state of each prompt at each position is; meaningless at positions whose state is
    # cached, and behind the pooled token.
    place: Tensor
    # (T',) the tokens of `computed` that the tower pools, stack after stack, Q to a row; a row that has fewer is filled
    # up with others.
    queries: Tensor
    query_masks: list[Tensor]  # for each stack, (N, Q, P + C + R) what they see
    pooled: Tensor  # (K,) which of the queries is each prompt's


def as_symbols(ids: Tensor, slots: Tensor, class_specific: bool) -> Tensor:
    """Prompts as numbers (K, L): where two agree up to a position, so do their states there. Learned ones are negative.

    Args:
        ids: (K, L) token ids.
        slots: (K, L) index of the context vector at each position, -1 for a constant token.
        class_specific: whether each prompt has its own context vectors.
    """
    count, length = ids.shape
    first = length * torch.arange(count)[:, None] if class_specific else 0
    return torch.where(slots < 0, ids, -1 - slots - first)


def common_beginning(symbols: Tensor, end: Tensor) -> int:
    """P, the number of tokens that all prompts (K, L) begin with, leaving each the token that is pooled (K,)."""
    alike = (symbols == symbols[:1]).all(0)
    return min(int(alike.int().cumprod(0).sum()), int(end.min()))


def build_plan(symbols: Tensor, end: Tensor, prefix: int) -> Plan:
    """Lay prompts out.

    Args:
        symbols: (K, L), see `as_symbols`.
        end: (K,) position that the tower pools; nothing after it is computed.
        prefix: P, common to these prompts and maybe to others.
    """
    learned = symbols < 0
    prefix_learns = bool(learned[:, :prefix].any())
    after_prefix = torch.full_like(end, prefix)
    first_learned = torch.where(learned.any(1), learned.int().argmax(1), end).minimum(end)
    start = after_prefix if prefix_learns else first_learned
    itself = torch.arange(len(symbols))[:, None].expand_as(symbols)
    cached = _lay_out(itself, after_prefix, start, prefix, computes_prefix=not prefix_learns)
    owner = find_owners(symbols, start, end)
    computed = _lay_out(owner, start, end + 1, prefix, computes_prefix=prefix_learns)
    seen = [torch.where(k.prompt == NO_KEY, 0, cached.base[k.prompt] + k.position) for k in computed.keys]
    position = torch.arange(symbols.shape[1])
    place = computed.base[owner] + position
    if prefix_learns:
        place[:, :prefix] = position[:prefix]
    return Plan(computed, cached, seen, place, *_queries(computed, place.gather(1, end[:, None])[:, 0]))


def find_owners(symbols: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """For each position of each prompt, (K, L), the prompt that computes its suffix tokens there for it.

    In lexicographic order, what a prompt shares with any before it, it shares with the one just before it.

    Args:
        symbols: (K, L), see `as_symbols`.
        start: (K,) position of the first suffix token. Positions before it are given that token's owner.
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
        position of the distinct learned ones; (T,) which of either kind each token is; (T,) whether it is learned.
    """
    prompt, position = layout.prompts, layout.positions
    slot = slots[prompt, position]
    learned = slot >= 0
    owner = prompt if class_specific else torch.zeros_like(prompt)
    index = torch.empty_like(slot)
    constants, index[~learned] = torch.stack([ids[prompt, position], position])[:, ~learned].unique(
        dim=1, return_inverse=True
    )
    learned_tokens, index[learned] = torch.stack([owner, slot, position])[:, learned].unique(dim=1, return_inverse=True)
    return constants, learned_tokens, index, learned


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


def _lay_out(owner: Tensor, start: Tensor, stop: Tensor, prefix: int, computes_prefix: bool) -> Layout:
    """Lay positions start..stop (K,) of every prompt out, seeing the shared prefix and its cached tokens."""
    stacks, base = _stack(owner, start, stop)
    keys = [_keys(rows, start, prefix) for rows in stacks]
    masks = []
    for rows, seen in zip(stacks, keys, strict=True):
        whole_prefix = torch.ones(*rows.prompt.shape, prefix, dtype=torch.bool)
        masks.append(torch.cat([whole_prefix, rows.sees(seen, owner), rows.sees(rows, owner)], dim=2))
    if not computes_prefix:
        return Layout(stacks, keys, masks, base)
    row = Rows(torch.zeros(1, prefix, dtype=torch.long), torch.arange(prefix)[None])
    nothing = Rows(row.prompt[:, :0], row.position[:, :0])
    causal = torch.ones(1, prefix, prefix, dtype=torch.bool).tril()
    return Layout([row, *stacks], [nothing, *keys], [causal, *masks], base + prefix)


def _stack(owner: Tensor, start: Tensor, stop: Tensor) -> tuple[list[Rows], Tensor]:
    """Pack what each prompt owns of positions start..stop (K,) into rows, stack rows of equal width; `Layout.base`."""
    position, itself = torch.arange(owner.shape[1]), torch.arange(len(owner))
    within = (position >= start[:, None]) & (position < stop[:, None])
    sizes = (within & (owner == itself[:, None])).sum(1)
    first = stop - sizes
    group = owner.gather(1, start[:, None])[:, 0]  # prompts that share suffix tokens share the first one
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


def _keys(rows: Rows, start: Tensor, prefix: int) -> Rows:
    """The cached tokens (positions prefix..start of each prompt) that the prompts of each row see, side by side."""
    begins = rows.position == start[rows.prompt]
    row, prompt = begins.nonzero()[:, 0], rows.prompt[begins]
    sizes = start[prompt] - prefix
    widths = torch.zeros(len(rows.prompt), dtype=torch.long).index_add_(0, row, sizes)
    offset = sizes.cumsum(0) - sizes - (widths.cumsum(0) - widths)[row]

    owner, step = _enumerate(sizes)
    keys = Rows(*torch.tensor([NO_KEY, 0])[:, None, None].repeat(1, len(widths), int(widths.max())))
    keys.prompt[row[owner], offset[owner] + step] = prompt[owner]
    keys.position[row[owner], offset[owner] + step] = prefix + step
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
