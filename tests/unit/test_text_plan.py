"""The packing plan: every token that matters is computed once and sees exactly the tokens before it."""

import time
from itertools import pairwise

import pytest
import torch

from coop.clip.plan import NO_KEY, ROW_WIDTH, best_fit, build_plan, common_beginning, distinct_tokens

SOS, EOS, STOP, FILLER = 90, 99, 80, 1
NAMES = [[10], [10, 11], [10, 11, 12], [13] * 9, [10, 11], [14, 10], [15] * 4, [16, 17, 18], [19] * 20, [13] * 8]


def prompts(names, n_ctx, position):
    """ids, slots (K, 77) and the position of [EOS], with context vectors where the paper's variants have them."""
    ids, slots = torch.zeros(len(names), 77, dtype=torch.long), torch.full((len(names), 77), -1)
    for k, name in enumerate(names):
        before = {"end": n_ctx, "middle": n_ctx // 2, "front": 0}[position]
        places = [-1, *range(before), *[-1] * len(name), *range(before, n_ctx), -1, -1]
        tokens = [SOS, *[FILLER] * before, *name, *[FILLER] * (n_ctx - before), STOP, EOS]
        ids[k, : len(tokens)], slots[k, : len(tokens)] = torch.tensor(tokens), torch.tensor(places)
    return ids, slots, ids.argmax(1)


def tokens(rows):
    """(prompt, position) of each place of a stack, row by row."""
    return [list(zip(*row, strict=True)) for row in zip(rows.prompt.tolist(), rows.position.tolist(), strict=True)]


variants = pytest.mark.parametrize(
    ("n_ctx", "position", "class_specific"),
    [(m, position, csc) for m in (1, 4, 16) for position in ("end", "middle", "front") for csc in (False, True)],
)


def test_best_fit_packs_whole_items_without_overlap():
    sizes = [7, 1, 5, 3, 3, 8, 2, 0, 8]
    row, offset = best_fit(sizes, 8)
    assert max(row) + 1 == 5  # 37 places at 8 to a row
    for r in set(row):
        spans = sorted((offset[i], offset[i] + sizes[i]) for i in range(len(sizes)) if row[i] == r)
        assert spans[-1][1] <= 8
        assert all(first[1] <= second[0] for first, second in pairwise(spans))


@pytest.mark.parametrize(
    ("position", "class_specific", "length"),
    [("end", False, 1 + 4), ("middle", False, 1 + 2), ("front", False, 1), ("end", True, 1), ("middle", True, 1)],
)
def test_common_beginning(position, class_specific, length):
    assert common_beginning(*prompts(NAMES, 4, position), class_specific) == length


def test_common_beginning_takes_in_common_words_but_leaves_each_prompt_its_last_token():
    assert common_beginning(*prompts([[10, 11], [10, 12]], 4, "end"), False) == 1 + 4 + 1
    assert common_beginning(*prompts([[10, 11], [10, 11]], 4, "end"), False) == 1 + 4 + 2 + 1
    assert common_beginning(*prompts([[10, 11]], 4, "end"), True) == 1 + 4 + 2 + 1  # one class: its context is common


@variants
def test_every_token_up_to_the_pooled_one_is_computed_once(n_ctx, position, class_specific):
    ids, slots, end = prompts(NAMES, n_ctx, position)
    trunk = common_beginning(ids, slots, end, class_specific)
    plan = build_plan(slots, end, trunk)
    computed = [
        token
        for layout in (plan.constants, plan.own)
        for rows in layout.stacks
        for row in tokens(rows)
        for token in row
    ]
    expected = [(0, p) for p in range(trunk)] + [(k, p) for k in range(len(ids)) for p in range(trunk, int(end[k]) + 1)]
    assert sorted(computed) == sorted(expected)
    own = list(zip(plan.own.prompts.tolist(), plan.own.positions.tolist(), strict=True))
    assert [own[i] for i in plan.pooled] == [(k, int(end[k])) for k in range(len(ids))]


@variants
def test_a_learnt_token_and_all_behind_it_are_computed_in_every_step(n_ctx, position, class_specific):
    ids, slots, end = prompts(NAMES, n_ctx, position)
    plan = build_plan(slots, end, common_beginning(ids, slots, end, class_specific))
    if plan.constants.stacks:
        for k, p in zip(plan.constants.prompts.tolist(), plan.constants.positions.tolist(), strict=True):
            assert (slots[k, : p + 1] < 0).all()
    learnt = int((slots >= 0).any(1).sum())
    assert learnt == len(ids)
    if class_specific:
        assert (slots[plan.own.prompts, plan.own.positions] >= 0).sum() == len(ids) * n_ctx


@variants
def test_a_token_sees_exactly_the_tokens_before_it(n_ctx, position, class_specific):
    ids, slots, end = prompts(NAMES, n_ctx, position)
    trunk = common_beginning(ids, slots, end, class_specific)
    plan = build_plan(slots, end, trunk)
    constants = []
    if plan.constants.stacks:
        constants = list(zip(plan.constants.prompts.tolist(), plan.constants.positions.tolist(), strict=True))
    trunk_is_own = not plan.constants.stacks
    for i, (rows, mask) in enumerate(zip(plan.own.stacks, plan.own.masks, strict=True)):
        for row, row_tokens in enumerate(tokens(rows)):
            keys = [(0, p) for p in range(trunk)] if not (trunk_is_own and i == 0) else []
            keys += [constants[place] for place in plan.constants_seen[i][row]]
            keys += row_tokens
            assert mask.shape[2] == len(keys)
            for column, (k, p) in enumerate(row_tokens):
                seen = [keys[j] for j in mask[row, column].nonzero().flatten()]
                assert sorted(pos for _, pos in seen) == list(range(p + 1))
                assert all(prompt == k for prompt, pos in seen if pos >= trunk)


def test_rows_that_need_fewer_constants_are_told_so():
    _, slots, end = prompts(NAMES, 4, "front")
    plan = build_plan(slots, end, 1)
    ragged = [keys for keys in plan.own.keys if (keys.prompt == NO_KEY).any()]
    assert ragged  # names of one and of twenty tokens
    for keys in plan.own.keys:
        per_row = [(row >= 0).sum() for row in keys.prompt]
        assert keys.prompt.shape[1] == max(per_row)


@variants
def test_no_padding_and_no_row_longer_than_needed(n_ctx, position, class_specific):
    ids, slots, end = prompts(NAMES * 5, n_ctx, position)
    plan = build_plan(slots, end, common_beginning(ids, slots, end, class_specific))
    for rows in plan.own.stacks:
        assert (rows.prompt >= 0).all()
        assert rows.prompt.shape[1] <= max(ROW_WIDTH, int(end.max()))
    assert len({rows.prompt.shape for rows in plan.own.stacks}) == len(plan.own.stacks)


@variants
def test_distinct_tokens_give_every_token_back(n_ctx, position, class_specific):
    ids, slots, end = prompts(NAMES, n_ctx, position)
    plan = build_plan(slots, end, common_beginning(ids, slots, end, class_specific))
    constants, learnts, index, is_learnt = distinct_tokens(plan.own, ids, slots, class_specific)
    for i, (k, p) in enumerate(zip(plan.own.prompts.tolist(), plan.own.positions.tolist(), strict=True)):
        if is_learnt[i]:
            assert learnts[:, index[i]].tolist() == [k if class_specific else 0, int(slots[k, p]), p]
        else:
            assert constants[:, index[i]].tolist() == [int(ids[k, p]), p]
    assert constants.unique(dim=1).shape == constants.shape
    assert learnts.unique(dim=1).shape == learnts.shape


@pytest.mark.parametrize("position", ["end", "front"])
def test_planning_a_thousand_classes_takes_less_than_a_second(position):
    generator = torch.Generator().manual_seed(0)
    names = [torch.randint(2, 80, (1 + k % 6,), generator=generator).tolist() for k in range(1000)]
    ids, slots, end = prompts(names, 16, position)
    begin = time.process_time()
    build_plan(slots, end, common_beginning(ids, slots, end, False))
    assert time.process_time() - begin < 1
