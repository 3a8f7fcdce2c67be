"""Sampling equals the original code's, image for image; base and new halves as in CoCoOp."""

import gzip
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from coop.data.readers.split_file import PUBLISHED, load_rows
from coop.data.sampling import Item, Splits, few_shot, sample, select_classes, selected_labels
from coop.errors import CoopError

REFERENCE = Path(__file__).parents[1] / "data" / "fewshot_caltech101.json.gz"


@pytest.fixture(scope="module")
def reference() -> dict:
    return json.loads(gzip.decompress(REFERENCE.read_bytes()))


@pytest.fixture(scope="module")
def caltech() -> dict[str, list[Item]]:
    rows = load_rows(PUBLISHED / "split_zhou_Caltech101.json.gz")
    return {part: [Item(*row) for row in listed] for part, listed in rows.items()}


def toy(counts: list[int]) -> list[Item]:
    return [Item(f"{label}/{index}", label, f"class {label}") for label, n in enumerate(counts) for index in range(n)]


@pytest.mark.parametrize("shots", [1, 4, 16])
def test_samples_what_the_original_code_samples(caltech, reference, shots):
    train, val = few_shot(caltech["train"], caltech["val"], shots, seed=1)
    expected = reference[f"seed1_shot{shots}"]
    assert [list(item) for item in train] == expected["train"]
    assert [list(item) for item in val] == expected["val"]
    assert len(caltech["test"]) == reference["n_test"] == 2465


def test_is_not_moved_by_other_random_numbers(caltech):
    first = few_shot(caltech["train"], caltech["val"], 4, seed=3)
    random.seed(123), np.random.seed(5), torch.manual_seed(7)
    random.random(), np.random.rand(), torch.rand(1)
    state = random.getstate()
    assert few_shot(caltech["train"], caltech["val"], 4, seed=3) == first
    assert random.getstate() == state, "sampling must not draw from the global generator either"


def test_seeds_differ(caltech):
    drawn = [few_shot(caltech["train"], caltech["val"], 1, seed) for seed in (0, 1, 2, 3)]
    assert len({tuple(train) for train, _ in drawn}) == 4


@pytest.mark.parametrize(("shots", "in_train", "in_val"), [(1, 1, 1), (2, 2, 2), (4, 4, 4), (8, 8, 4), (16, 16, 4)])
def test_counts(shots, in_train, in_val):
    train, val = few_shot(toy([20, 20]), toy([9, 9]), shots, seed=1)
    assert [item.label for item in train] == [0] * in_train + [1] * in_train
    assert [item.label for item in val] == [0] * in_val + [1] * in_val


def test_validation_follows_training_in_the_same_generator():
    train, val = few_shot(toy([9, 9]), toy([7, 7]), 5, seed=11)
    rng = random.Random(11)
    drawn = [rng.sample(toy([9, 9])[start : start + 9], 5) for start in (0, 9)]
    assert train == drawn[0] + drawn[1]
    drawn = [rng.sample(toy([7, 7])[start : start + 7], 4) for start in (0, 7)]
    assert val == drawn[0] + drawn[1]


def test_small_class_gives_all_it_has_in_order_and_draws_nothing():
    items = toy([3, 8])
    train, _ = few_shot(items, [], 4, seed=1)
    assert train[:3] == items[:3]
    assert train[3:] == random.Random(1).sample(items[3:], 4)


@pytest.mark.parametrize("shots", [0, -1])
def test_fewer_than_one_shot_means_all(shots):
    assert few_shot(toy([3, 2]), toy([1, 1]), shots, seed=1) == (toy([3, 2]), toy([1, 1]))


def test_groups_by_first_appearance():
    items = [Item("a", 2, "c"), Item("b", 0, "a"), Item("c", 2, "c"), Item("d", 1, "b")]
    assert [item.path for item in few_shot(items, [], 2, seed=1)[0]] == ["a", "c", "b", "d"]


def test_base_and_new_halves_of_caltech(caltech):
    base = select_classes(caltech["test"], 100, "base")
    new = select_classes(caltech["test"], 100, "new")
    assert (len(base), len(new)) == (1549, 916)
    assert len(base) + len(new) == 2465
    assert {item.label for item in base} == {item.label for item in new} == set(range(50))
    assert base[0].classname == "face"
    assert new[0].classname == next(item.classname for item in caltech["test"] if item.label == 50)
    assert select_classes(caltech["test"], 100, "all") == caltech["test"]


@pytest.mark.parametrize(("num_classes", "base", "new"), [(4, 2, 2), (37, 19, 18), (47, 24, 23), (1, 1, 0)])
def test_base_has_the_middle_class(num_classes, base, new):
    assert (len(selected_labels(num_classes, "base")), len(selected_labels(num_classes, "new"))) == (base, new)


def test_unknown_half():
    with pytest.raises(CoopError, match=r"dataset.classes=left: allowed are all, base, new"):
        selected_labels(4, "left")


def test_sampling_comes_before_the_choice_of_classes(caltech):
    classnames = list(dict.fromkeys(item.classname for item in caltech["train"]))
    whole = Splits(caltech["train"], caltech["val"], caltech["test"], classnames)
    new = sample(whole, 4, 1, "new")
    everything = few_shot(caltech["train"], caltech["val"], 4, 1)[0]
    assert [item.path for item in new.train] == [item.path for item in everything if item.label >= 50]
    assert new.classnames == classnames[50:]
    assert all(new.classnames[item.label] == item.classname for item in (*new.train, *new.val, *new.test))


def test_warns_which_classes_are_small(caplog):
    sample(Splits(toy([5, 2]), [], toy([1, 1]), ["class 0", "class 1"]), 4, 1)
    assert "class 1 (2)" in caplog.text
    assert "class 0" not in caplog.text
