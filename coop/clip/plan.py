"""Which tokens of a set of prompts have to be computed, and in which order they are laid out.

Integers only: no model, no device, no gradient. `coop.clip.text` explains why leaving the other tokens out is exact.

A prompt is cut after the token that the tower pools ([EOS]) and then falls into three consecutive parts:

    trunk      the beginning that all prompts share, [SOS] at least
    constants  if the trunk holds no context vector: what else stands before the prompt's first one
    own        everything else, [EOS] included

A shared context at the end or in the middle is in the trunk; behind a context vector nothing is constant, so the
second part is empty. With a context at the front, or one per class, the trunk is constant itself.

Own tokens (and constants) are laid out as rows of one or several whole prompts, and rows of equal width are stacked,
so that no padding is computed at all. How many prompts share a row matters for speed alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ROW_WIDTH = 32  # fastest for attention on a CPU by measurement (24 to 48 are within 10%); longer prompts have longer rows
NO_KEY = -1


@dataclass(frozen=True)
class Rows:
    """A stack of N rows of R tokens.

    Attributes:
        prompt: (N, R) the prompt that each token belongs to, `NO_KEY` where a row of keys has fewer than R.
        position: (N, R) its position in that prompt.
    """

    prompt: Tensor
    position: Tensor

    def sees(self, keys: Rows) -> Tensor:
        """Causal attention within each prompt: (N, R, C), true where a token sees a key of the same row of `keys`."""
        same_prompt = self.prompt[:, :, None] == keys.prompt[:, None, :]
        return same_prompt & (keys.position[:, None, :] <= self.position[:, :, None])


@dataclass(frozen=True)
class Layout:
    """Tokens in the order in which they are computed: stack after stack, row after row.

    Attributes:
        stacks: rows, stacked by width.
        base: (K,) position p of prompt k is the (base[k] + p)-th token of the layout.
    """

    stacks: list[Rows]
    base: Tensor

    @property
    def prompts(self) -> Tensor:
        """(T,) the prompt of each token."""
        return torch.cat([rows.prompt.flatten() for rows in self.stacks])

    @property
    def positions(self) -> Tensor:
        """(T,) the position of each token."""
        return torch.cat([rows.position.flatten() for rows in self.stacks])


@dataclass(frozen=True)
class Plan:
    """What to compute for K prompts besides their trunk of P tokens.

    Attributes:
        own: the own tokens, T of them: what every step computes.
        constants: the constant tokens; None if there are none.
        constant_keys: for each stack of `own`, the constant tokens (N, C) that the prompts of each row need.
        masks: for each stack of `own`, (N, R, P + C + R) what a token sees of the trunk, these and its own row.
        pooled: (K,) which of the own tokens each prompt's pooled token is.
    """

    own: Layout
    constants: Layout | None
    constant_keys: list[Rows]
    masks: list[Tensor]
    pooled: Tensor


def common_beginning(ids: Tensor, slots: Tensor, end: Tensor, class_specific: bool) -> int:
    """P, the number of tokens that all prompts begin with, leaving each its pooled token.

    Args:
        ids: (K, L) token ids.
        slots: (K, L) index of the context vector at each position, -1 for a constant token.
        end: (K,) position that the tower pools; nothing after it is computed.
        class_specific: whether each prompt has its own context vectors.
    """
    alike = ((slots == slots[:1]) & ((slots >= 0) | (ids == ids[:1]))).all(0)
    if class_specific and len(ids) > 1:
        alike &= (slots < 0).all(0)
    return min(int(alike.int().cumprod(0).sum()), int(end.min()))


def build_plan(slots: Tensor, end: Tensor, trunk: int) -> Plan:
    """Lay out what comes after the trunk.

    Args:
        slots: (K, L) as in `common_beginning`.
        end: (K,) likewise.
        trunk: P, common to these prompts and maybe others.
    """
    learnt = slots >= 0
    first_learnt = torch.where(learnt.any(1), learnt.int().argmax(1), end)
    start = first_learnt.clamp(min=trunk).minimum(end)
    if bool((slots[:, :trunk] >= 0).any()):
        start = torch.full_like(end, trunk)
    own = lay_out(start, end + 1)
    constants, constant_keys = None, []
    if bool((start > trunk).any()):
        constants = lay_out(torch.full_like(start, trunk), start)
        constant_keys = [_constants_of(rows, trunk, start) for rows in own.stacks]
    masks = []
    for i, rows in enumerate(own.stacks):
        sees_trunk = torch.ones(*rows.prompt.shape, trunk, dtype=torch.bool)
        sees_constants = [rows.sees(constant_keys[i])] if constants else []
        masks.append(torch.cat([sees_trunk, *sees_constants, rows.sees(rows)], dim=2))
    return Plan(own, constants, constant_keys, masks, own.base + end)


def distinct_tokens(layout: Layout, ids: Tensor, slots: Tensor, class_specific: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Find tokens that are the same at the same position: their input to the first layer is the same.

    Returns:
        (2, U) id and position of each distinct constant token; (3, V) prompt (0 if the context is shared), slot and
        position of each distinct learnt one; (T,) which of them each token is, learnt ones counted from U on.
    """
    prompt, position = layout.prompts, layout.positions
    slot = slots[prompt, position]
    owner = prompt if class_specific else torch.zeros_like(prompt)
    constant, learnt = slot < 0, slot >= 0
    index = torch.empty_like(slot)
    constants = torch.stack([ids[prompt, position], position])[:, constant]
    constants, index[constant] = constants.unique(dim=1, return_inverse=True)
    learnts = torch.stack([owner, slot, position])[:, learnt]
    learnts, index[learnt] = learnts.unique(dim=1, return_inverse=True) if learnt.any() else (learnts, index[learnt])
    index[learnt] += constants.shape[1]
    return constants, learnts, index


def lay_out(start: Tensor, stop: Tensor) -> Layout:
    """Lay out positions start..stop (K,) of every prompt, each prompt within one row."""
    sizes = stop - start
    row, offset = (torch.tensor(t) for t in best_fit(sizes.tolist(), max(ROW_WIDTH, int(sizes.max()))))
    widths = torch.zeros(int(row.max()) + 1, dtype=torch.long).index_add_(0, row, sizes)
    by_width = widths.argsort(stable=True)
    row_begin = torch.empty_like(widths)
    row_begin[by_width] = widths[by_width].cumsum(0) - widths[by_width]
    base = row_begin[row] + offset - start

    owner = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
    position = torch.arange(len(owner)) - torch.repeat_interleave(sizes.cumsum(0) - sizes - start, sizes)
    place = base[owner] + position
    order = place.argsort()
    distinct, count = torch.unique(widths[widths > 0], return_counts=True)
    lengths = (distinct * count).tolist()
    stacks = [
        Rows(prompts.view(-1, width), positions.view(-1, width))
        for prompts, positions, width in zip(
            owner[order].split(lengths), position[order].split(lengths), distinct.tolist(), strict=True
        )
    ]
    return Layout(stacks, base)


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


def _constants_of(rows: Rows, trunk: int, stop: Tensor) -> Rows:
    """The constant tokens (positions trunk..stop of each prompt) that the prompts of each row need, side by side."""
    count = stop - trunk
    prompts_of_row = [row.unique() for row in rows.prompt]
    widest = max(int(count[prompts].sum()) for prompts in prompts_of_row)
    prompt = torch.full((len(prompts_of_row), widest), NO_KEY)
    position = torch.zeros_like(prompt)
    for i, prompts in enumerate(prompts_of_row):
        owner = torch.repeat_interleave(prompts, count[prompts])
        prompt[i, : len(owner)] = owner
        position[i, : len(owner)] = trunk + torch.cat([torch.arange(n) for n in count[prompts].tolist()])
    return Rows(prompt, position)
