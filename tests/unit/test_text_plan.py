"""The packing plan: every token that matters is computed once and sees exactly the tokens before it."""

import time

import pytest
import torch

import coop.clip.text.packing as plan_module
from coop.clip.text.packing import (
    NO_KEY,
    ROW_WIDTH,
    as_symbols,
    best_fit,
    build_plan,
    common_beginning,
    distinct_tokens,
    find_owners,
)

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


def planned(ids, slots, end, class_specific):
    """The plan, and the length of the prefix."""
    symbols = as_symbols(ids, slots, class_specific)
    prefix = common_beginning(symbols, end)
    return build_plan(symbols, end, prefix), prefix


def beginnings(ids, slots, class_specific):
    """For each prompt, its tokens as what tells one from another: an id, or a context vector."""

    def token(k, p):
        slot = int(slots[k, p])
        return int(ids[k, p]) if slot < 0 else ("ctx", slot, k if class_specific else None)

    return [[token(k, p) for p in range(ids.shape[1])] for k in range(len(ids))]


def tokens(rows):
    """(prompt, position) of each place of a stack, row by row."""
    return [list(zip(*row, strict=True)) for row in zip(rows.prompt.tolist(), rows.position.tolist(), strict=True)]


variants = pytest.mark.parametrize(
    ("n_ctx", "position", "class_specific"),
    [(m, position, csc) for m in (1, 4, 16) for position in ("end", "middle", "front") for csc in (False, True)],
)


def test_best_fit_packs_whole_items_without_overlap():
    sizes = [7, 1, 5, 3, 3, 8, 2, 0, 8]
    rows = best_fit(sizes, 8)
    assert len(rows) == 5  # 37 places at 8 to a row
    assert sorted(item for row in rows for item in row) == list(range(len(sizes)))
    assert all(sum(sizes[item] for item in row) <= 8 for row in rows)


@pytest.mark.parametrize(
    ("position", "class_specific", "length"),
    [("end", False, 1 + 4), ("middle", False, 1 + 2), ("front", False, 1), ("end", True, 1), ("middle", True, 1)],
)
def test_common_beginning(position, class_specific, length):
    ids, slots, end = prompts(NAMES, 4, position)
    assert common_beginning(as_symbols(ids, slots, class_specific), end) == length


def test_common_beginning_takes_in_common_words_but_leaves_each_prompt_its_last_token():
    def length(names, class_specific):
        ids, slots, end = prompts(names, 4, "end")
        return common_beginning(as_symbols(ids, slots, class_specific), end)

    assert length([[10, 11], [10, 12]], False) == 1 + 4 + 1
    assert length([[10, 11], [10, 11]], False) == 1 + 4 + 2 + 1
    assert length([[10, 11]], True) == 1 + 4 + 2 + 1  # one class: its context is common


WORDS = {90: "[SOS]", 99: "[EOS]", 80: ".", 10: "great", 11: "white", 12: "shark", 13: "grey", 14: "owl", 15: "cat"}


def in_words(ids, slots, prompt, position):
    """A token as the worked example writes it."""
    slot = int(slots[prompt, position])
    return f"v{slot + 1}" if slot >= 0 else WORDS[int(ids[prompt, position])]


def drawn(ids, slots, end, plan):
    """The lines of the worked example: prompts, stacks, what single tokens see, and what the last layer computes."""
    for k, last in enumerate(end.tolist()):
        yield " ".join(["prompt", str(k), *(in_words(ids, slots, k, p) for p in range(last + 1))])
    for number, rows in enumerate(plan.computed.stacks):
        count, width = rows.prompt.shape
        (row,) = tokens(rows)
        words = [in_words(ids, slots, k, p) for k, p in row]
        yield f"stack {number}, {count} row x {width} " + " ".join(words)
    for token in (2, 6, 9):
        yield words[token] + " " + " ".join("-x"[seen] for seen in plan.computed.masks[1][0, token].int().tolist())
    yield "last layer: queries " + " ".join(str(int(plan.queries[place])) for place in plan.pooled)


def test_the_worked_example_of_the_docstring():
    """Every line of it is what the code does; so are its counts."""
    ids, slots, end = prompts([[10, 11, 12], [10, 13, 14], [15]], 2, "end")
    plan, prefix = planned(ids, slots, end, class_specific=False)
    text = " ".join(plan_module.__doc__.split())
    for line in drawn(ids, slots, end, plan):
        assert line in text, line
    upto = (end + 1).tolist()
    assert f"{len(ids)} x 77 = {ids.numel()} tokens" in text
    assert f"{' + '.join(map(str, upto))} = {sum(upto)}." in text
    assert f"{sum(upto)} - 2 x {prefix} = {sum(upto) - 2 * prefix}." in text
    assert f"{len(plan.computed.prompts)} tokens are left" in text

    plan, prefix = planned(ids, slots, end, class_specific=True)
    assert (prefix, len(plan.cached.prompts)) == (1, 1)
    assert f"{' + '.join(str(count - 1) for count in upto)} = {len(plan.computed.prompts)}." in text


@variants
def test_every_state_has_its_place(n_ctx, position, class_specific):
    ids, slots, end = prompts(NAMES, n_ctx, position)
    plan, _ = planned(ids, slots, end, class_specific)
    begins = beginnings(ids, slots, class_specific)
    computed = list(zip(plan.computed.prompts.tolist(), plan.computed.positions.tolist(), strict=True))
    for k in range(len(ids)):
        first = int((slots[k] >= 0).int().argmax())
        for p in range(first, int(end[k]) + 1):
            other, at = computed[plan.place[k, p]]
            assert at == p and begins[other][: p + 1] == begins[k][: p + 1]


@variants
def test_every_token_up_to_the_pooled_one_is_computed_once(monkeypatch, n_ctx, position, class_specific):
    monkeypatch.setattr(plan_module, "ROW_WIDTH", 64)  # long prompts that begin alike fit a row
    ids, slots, end = prompts(NAMES, n_ctx, position)
    plan, _ = planned(ids, slots, end, class_specific)
    begins = beginnings(ids, slots, class_specific)
    computed = [(k, p) for rows in plan.computed.stacks for row in tokens(rows) for k, p in row]
    states = [tuple(begins[k][: p + 1]) for k, p in computed]
    assert len(set(states)) == len(states)
    constant = {tuple(begins[k][: p + 1]) for rows in plan.cached.stacks for row in tokens(rows) for k, p in row}
    assert not constant & set(states)
    assert constant | set(states) == {tuple(begins[k][: p + 1]) for k in range(len(ids)) for p in range(end[k] + 1)}
    queries = [computed[i] for i in plan.queries]
    for k, place in enumerate(plan.pooled):
        other, p = queries[place]
        assert p == end[k] and begins[other][: p + 1] == begins[k][: p + 1]


def test_names_that_begin_alike_share_a_row_as_long_as_they_fit():
    names = [[10, 11 + i % 60] for i in range(60)] + [[9]]
    ids, slots, end = prompts(names, 4, "end")
    plan, prefix = planned(ids, slots, end, class_specific=False)
    assert max(rows.prompt.shape[1] for rows in plan.computed.stacks) <= ROW_WIDTH
    per_row = (ROW_WIDTH - 1) // 3  # one word in common, then another, the full stop and [EOS]
    assert len(plan.computed.prompts) == prefix + 60 * 3 + 60 // per_row + 3


def test_owners():
    ids, slots, end = prompts([[10, 12], [10, 11], [13], [10, 11]], 2, "end")
    owner = find_owners(as_symbols(ids, slots, False), torch.full((4,), 3), end)
    assert owner[1, : end[1] + 1].tolist() == [1] * 7
    assert owner[3, : end[3] + 1].tolist() == [1] * 7  # the same prompt
    assert owner[0, : end[0] + 1].tolist() == [1] * 4 + [0] * 3  # the first word in common
    assert owner[2, : end[2] + 1].tolist() == [2] * 6
    alone = find_owners(as_symbols(ids, slots, True), torch.full((4,), 1), end)
    assert alone.tolist() == [[k] * 77 for k in range(4)]


@variants
def test_a_learned_token_and_all_behind_it_are_computed_in_every_step(n_ctx, position, class_specific):
    ids, slots, end = prompts(NAMES, n_ctx, position)
    plan, _ = planned(ids, slots, end, class_specific)
    if plan.cached.stacks:
        for k, p in zip(plan.cached.prompts.tolist(), plan.cached.positions.tolist(), strict=True):
            assert (slots[k, : p + 1] < 0).all()
    learned = int((slots >= 0).any(1).sum())
    assert learned == len(ids)
    if class_specific:
        assert (slots[plan.computed.prompts, plan.computed.positions] >= 0).sum() == len(ids) * n_ctx


@variants
def test_a_token_sees_exactly_the_tokens_before_it(n_ctx, position, class_specific):
    ids, slots, end = prompts(NAMES, n_ctx, position)
    plan, prefix = planned(ids, slots, end, class_specific)
    begins = beginnings(ids, slots, class_specific)
    constants = []
    if plan.cached.stacks:
        constants = list(zip(plan.cached.prompts.tolist(), plan.cached.positions.tolist(), strict=True))
    prefix_is_computed = not plan.cached.stacks
    queries, own, done = plan.queries.tolist(), [], 0
    for i, (rows, mask, query_mask) in enumerate(
        zip(plan.computed.stacks, plan.computed.masks, plan.query_masks, strict=True)
    ):
        for row, row_tokens in enumerate(tokens(rows)):
            keys = [(0, p) for p in range(prefix)] if not (prefix_is_computed and i == 0) else []
            keys += [constants[place] for place in plan.cached_seen[i][row]]
            keys += row_tokens
            assert mask.shape[2] == query_mask.shape[2] == len(keys)
            asked = [queries[done + j] - len(own) for j in range(query_mask.shape[1])]
            done += query_mask.shape[1]
            seeing = [(row_tokens[column], mask[row, column]) for column in range(len(row_tokens))]
            seeing += [(row_tokens[column], query_mask[row, j]) for j, column in enumerate(asked)]
            for (k, p), seen in seeing:
                found = [keys[j] for j in seen.nonzero().flatten()]
                assert sorted(pos for _, pos in found) == list(range(p + 1))
                assert all(begins[other][: pos + 1] == begins[k][: pos + 1] for other, pos in found)
            own += row_tokens


def test_rows_that_need_fewer_constants_are_told_so():
    plan, _ = planned(*prompts([*NAMES, [20]], 4, "front"), class_specific=False)
    ragged = [keys for keys in plan.computed.keys if (keys.prompt == NO_KEY).any()]
    assert ragged  # ten prompts in two rows, with names of one and of twenty tokens
    for keys in plan.computed.keys:
        per_row = [(row >= 0).sum() for row in keys.prompt]
        assert keys.prompt.shape[1] == max(per_row)


@variants
def test_no_padding_and_no_row_longer_than_needed(n_ctx, position, class_specific):
    ids, slots, end = prompts(NAMES * 5, n_ctx, position)
    plan, _ = planned(ids, slots, end, class_specific)
    for rows in plan.computed.stacks:
        assert (rows.prompt >= 0).all()
        assert rows.prompt.shape[1] <= max(ROW_WIDTH, int(end.max()))
    assert len({rows.prompt.shape for rows in plan.computed.stacks}) == len(plan.computed.stacks)


@variants
def test_distinct_tokens_give_every_token_back(n_ctx, position, class_specific):
    ids, slots, end = prompts(NAMES, n_ctx, position)
    plan, _ = planned(ids, slots, end, class_specific)
    constants, learned_tokens, index, is_learned = distinct_tokens(plan.computed, ids, slots, class_specific)
    for i, (k, p) in enumerate(zip(plan.computed.prompts.tolist(), plan.computed.positions.tolist(), strict=True)):
        if is_learned[i]:
            assert learned_tokens[:, index[i]].tolist() == [k if class_specific else 0, int(slots[k, p]), p]
        else:
            assert constants[:, index[i]].tolist() == [int(ids[k, p]), p]
    assert constants.unique(dim=1).shape == constants.shape
    assert learned_tokens.unique(dim=1).shape == learned_tokens.shape


@pytest.mark.parametrize("position", ["end", "front"])
def test_planning_a_thousand_classes_takes_less_than_a_second(position):
    generator = torch.Generator().manual_seed(0)
    names = [torch.randint(2, 80, (1 + k % 6,), generator=generator).tolist() for k in range(1000)]
    ids, slots, end = prompts(names, 16, position)
    begin = time.process_time()
    planned(ids, slots, end, class_specific=False)
    assert time.process_time() - begin < 1
