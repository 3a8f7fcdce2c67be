"""Support sets of others, as manifests; numbers of shots of each class."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from coop.data.counts import counts_by_label, spread_shots
from coop.data.manifest import apply_manifest, manifest_sha256
from coop.data.sampling import Item, Splits, sample
from coop.errors import CoopError

NAMES = ["ant", "bee", "grey_wolf", "dog"]


@pytest.fixture
def whole() -> Splits:
    """/data/pets/images/NAME/PART_N.jpg: 8 images of each class to train, 4 to validate, 5 to test."""

    def items(part: str, count: int) -> list[Item]:
        return [Item(f"/data/pets/images/{n}/{part}_{i}.jpg", k, n) for k, n in enumerate(NAMES) for i in range(count)]

    return Splits(items("train", 8), items("val", 4), items("test", 5), NAMES)


def rows(items: list[Item], root: str = "./data/pets/images") -> list[dict]:
    return [
        {"impath": item.path.replace("/data/pets/images", root), "label": item.label, "classname": item.classname}
        for item in items
    ]


def indices(path: Path, train: list[Item], val: list[Item] = ()) -> str:
    """A file as cross-modal adaptation has them."""
    parts = {name: {"data": rows(items), "indices": list(range(len(items)))} for name, items in zip(
        ("train", "val"), (train, list(val)), strict=True)}  # fmt: skip
    path.write_text(json.dumps(parts, indent=4))
    return str(path)


def lines(path: Path, listed: list) -> str:
    """A file of JSON lines."""
    path.write_text("".join(f"{json.dumps(row)}\n" for row in listed))
    return str(path)


def test_indices_of_cross_modal_adaptation(whole, tmp_path):
    drawn = sample(whole, 2, seed=7)
    path = indices(tmp_path / "shot_2-seed_7.json", drawn.train, drawn.val)
    found = apply_manifest(whole, path, shots=2)
    assert (found.train, found.val, found.test) == (drawn.train, drawn.val, whole.test)
    assert found.classnames == NAMES
    base = apply_manifest(whole, path, shots=2, classes="new")
    assert [item.classname for item in base.train] == ["grey_wolf"] * 2 + ["dog"] * 2
    assert {item.label for item in base.train} == {item.label for item in base.test} == {0, 1}


@pytest.mark.parametrize("form", ["dassl", "other keys", "rows"])
def test_json_lines(whole, tmp_path, form):
    drawn = sample(whole, 4, seed=2).train
    listed = rows(drawn, "D:\\datasets\\pets\\images")
    if form == "other keys":
        listed = [{"path": row["impath"], "target": row["label"]} for row in listed]
    elif form == "rows":
        listed = [[row["impath"], row["label"], row["classname"]] for row in listed]
    found = apply_manifest(whole, lines(tmp_path / "4_shots.jsonl", listed), shots=4)
    assert (found.train, found.val, found.test) == (drawn, [], whole.test)


def test_labels_of_another_order_are_the_data_sets_own(whole, tmp_path):
    drawn = sample(whole, 1, seed=1).train
    listed = rows([item._replace(label=3 - item.label) for item in drawn])
    assert apply_manifest(whole, lines(tmp_path / "a.jsonl", listed), shots=1).train == drawn


def test_a_file_is_known_by_its_content(whole, tmp_path):
    drawn = sample(whole, 1, seed=1).train
    first, again = lines(tmp_path / "a.jsonl", rows(drawn)), lines(tmp_path / "b.jsonl", [*rows(drawn)])
    other = lines(tmp_path / "c.jsonl", rows(sample(whole, 1, seed=2).train))
    assert manifest_sha256(first) == manifest_sha256(again) != manifest_sha256(other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r[0].update(impath="x/ant/train_99.jpg"), "1 of its 4 images are not in this data set: x/ant/train_99"),
        (lambda r: r[0].update(impath="ant/test_0.jpg"), "1 of its images are test images of this data set: ant/test_0"),
        (lambda r: r.append(r[0]), "images that stand there more than once: /data/pets/images/ant/train_"),
        (lambda r: r[1].update(label=0), "the label 0, as images of 'ant'; in this data set it is 'bee'"),
        (lambda r: r[0].update(label="0"), "line 1: label is \"0\": must be a whole number"),
        (lambda r: r[2].pop("impath"), "line 3: impath is missing"),
        (lambda r: r.clear(), "lists no image"),
        (lambda r: r.append({"impath": "bee/val_1.jpg", "label": 1}), "has 2 training images of a class, not shots=1"),
    ],
)  # fmt: skip
def test_files_that_do_not_fit(whole, tmp_path, change, message):
    listed = rows(sample(whole, 1, seed=1).train)
    change(listed)
    with pytest.raises(CoopError) as caught:
        apply_manifest(whole, lines(tmp_path / "a.jsonl", listed), shots=1)
    assert message in str(caught.value) and str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("content", ['{"train": {"rows": []}}', '{"train": {}}', '{"train": {"data": [3]}}'])
def test_indices_of_another_form(whole, tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(CoopError, match=r'train\.data.*Expected lines of {"impath"'):
        apply_manifest(whole, str(tmp_path / "a.json"), shots=1)


def test_a_file_that_is_not_there(whole):
    with pytest.raises(CoopError, match="cannot be read"):
        apply_manifest(whole, "/nowhere/shots.jsonl", shots=1)


def config(shots) -> OmegaConf:
    return OmegaConf.create({"shots": shots, "dataset": {"counts": None}})


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("counts.csv", "class,count\ndog,3\nant,1\nbee,0\ngrey wolf,8\n"),
        ("counts.csv", "count,class,note\r\n1,ant,x\r\n0,bee,\r\n8,grey_wolf,\r\n3,dog,\r\n"),
        ("counts.json", '{"ant": 1, "bee": 0, "grey wolf": 8, "dog": 3}'),
        ("counts.json", "[1, 0, 8, 3]"),
    ],
)
def test_counts_from_a_file(whole, tmp_path, name, content):
    (tmp_path / name).write_text(content)
    cfg = config(str(tmp_path / name))
    spread_shots(cfg)
    assert cfg.shots == 3
    assert counts_by_label(OmegaConf.to_container(cfg.dataset.counts), NAMES) == [1, 0, 8, 3]


def test_counts_of_each_class_are_sampled(whole):
    cfg = config([1, 0, 8, 20])
    spread_shots(cfg)
    found = sample(whole, counts_by_label(list(cfg.dataset.counts), NAMES), seed=3)
    assert Counter(item.classname for item in found.train) == {"ant": 1, "grey_wolf": 8, "dog": 8}
    assert Counter(item.classname for item in found.val) == {"ant": 1, "grey_wolf": 4, "dog": 4}
    assert found.test == whole.test and cfg.shots == 7
    assert sample(whole, [2] * 4, seed=3) == sample(whole, 2, seed=3), "equal numbers are the usual sample"
    small = replace(whole, train=whole.train[:9])
    assert len(sample(small, [8, 1, 0, 0], seed=1).train) == 9


def test_one_number_is_left_alone():
    for shots in (16, -1, "abc", None):
        cfg = config(shots)
        spread_shots(cfg)
        assert (cfg.shots, cfg.dataset.counts) == (shots, None)


@pytest.mark.parametrize(
    ("shots", "message"),
    [
        ([1, -1], "-1 is not a number of images"),
        ([1, 2.5], "2.5 is not a number of images"),
        ([0, 0], "not one image"),
        ("nowhere.csv", "shots=nowhere.csv: cannot be read"),
        ("class,number\nant,3\n", "its first line is not class,count"),
        ("class,count\nant,many\n", "not readable (invalid literal"),
        ("class,count\nant,-2\n", "-2 is not a number of images"),
        ("[1, ", "not readable"),
        ("{}", "holds no counts"),
        ('"three"', "holds no counts"),
        ('[["ant", 1, 2]]', "is not a number of images"),
    ],
)
def test_counts_that_are_none(tmp_path, shots, message):
    if isinstance(shots, str) and not shots.startswith("nowhere"):
        path = tmp_path / ("counts.csv" if shots.startswith("class") else "counts.json")
        path.write_text(shots)
        shots = str(path)
    with pytest.raises(CoopError) as caught:
        spread_shots(config(shots))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (
            [1, 2, 3],
            "3 numbers, and the data set has 4 classes; give one for each, in the order of its classes (ant, bee",
        ),
        ([["ant", 1], ["be", 2], ["dog", 1], ["grey_wolf", 1]], "has no class be; near matches: bee"),
        ([["ant", 1], ["bee", 2]], "no number for the classes grey_wolf, dog"),
        ([["ant", 1], ["ant", 2], ["bee", 1], ["dog", 1], ["grey_wolf", 1]], "two numbers for the class ant"),
    ],
)
def test_counts_of_other_classes(counts, message):
    with pytest.raises(CoopError) as caught:
        counts_by_label(counts, NAMES)
    assert message in str(caught.value)
