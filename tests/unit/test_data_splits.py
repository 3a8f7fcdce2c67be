"""Split files: their form, labels, names, and the images they name."""

import gzip
import json
from pathlib import Path

import pytest

from coop.data.readers.split_file import PUBLISHED, load_rows, read_split_file, splits_from_rows
from coop.errors import CoopError

ROWS = {"train": [["x/1.jpg", 0, "ant"], ["x/2.jpg", 1, "bee"]], "val": [], "test": [["x/3.jpg", 1, "bee"]]}


@pytest.fixture
def data_root(tmp_path) -> Path:
    (tmp_path / "set/images/x").mkdir(parents=True)
    for index in range(1, 6):
        (tmp_path / f"set/images/x/{index}.jpg").touch()
    return tmp_path


def read(data_root: Path, content) -> object:
    text = content if isinstance(content, str) else json.dumps(content)
    (data_root / "set/split.json").write_text(text, encoding="utf-8")
    return read_split_file(str(data_root), image_folders=["set/images"], split_file="split.json")


def test_reads_in_the_files_order(data_root):
    splits = read(data_root, ROWS)
    assert [(item.path, item.label, item.classname) for item in splits.train] == [
        (str(data_root / "set/images/x/1.jpg"), 0, "ant"),
        (str(data_root / "set/images/x/2.jpg"), 1, "bee"),
    ]
    assert (splits.val, splits.classnames, splits.origin) == ([], ["ant", "bee"], "own")


def test_first_folder_that_exists_is_taken(data_root):
    (data_root / "other").mkdir()
    (data_root / "set/split.json").write_text(json.dumps(ROWS))
    splits = read_split_file(str(data_root), image_folders=["none/images", "set/images"], split_file="split.json")
    assert splits.test[0].path == str(data_root / "set/images/x/3.jpg")


def test_val_may_be_absent(data_root):
    assert read(data_root, {"train": ROWS["train"], "test": ROWS["test"]}).val == []


def test_gaps_in_labels_are_closed_with_a_warning(data_root, caplog):
    rows = {"train": [["x/1.jpg", 5, "bee"], ["x/2.jpg", 2, "ant"]], "val": [], "test": [["x/3.jpg", 5, "bee"]]}
    splits = read(data_root, rows)
    assert splits.classnames == ["ant", "bee"]
    assert [item.label for item in (*splits.train, *splits.test)] == [1, 0, 1]
    assert "no image has the labels 0, 1, 3, 4" in caplog.text


def test_two_classes_of_one_name_are_kept_apart(data_root, caplog):
    rows = {"train": [["x/1.jpg", 0, "crane"], ["x/2.jpg", 1, "crane"]], "val": [], "test": [["x/3.jpg", 1, "crane"]]}
    splits = read(data_root, rows)
    assert splits.classnames == ["crane", "crane"]
    assert [item.label for item in splits.train] == [0, 1]


def test_image_in_train_and_test_is_warned_about(data_root, caplog):
    read(data_root, {"train": ROWS["train"], "val": [], "test": [["x/1.jpg", 0, "ant"]]})
    assert "1 images stand there more than once, perhaps in training and test: x/1.jpg" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not readable as JSON"),
        ("[1, 2]", r'the file is \[1, 2\]: must be an object .* Expected {"train"'),
        ({"train": ROWS["train"]}, 'test is missing. Expected {"train"'),
        (ROWS | {"train": []}, r"train is \[\]: must not be empty"),
        (ROWS | {"test": "x/3.jpg"}, 'test is "x/3.jpg": must be a list'),
        (ROWS | {"test": [["x/3.jpg", 1]]}, r"test\[0\]\[2\] is missing.*image path, label, class name"),
        (ROWS | {"test": [["x/3.jpg", "1", "bee"]]}, r'test\[0\]\[1\] is "1": must be a whole number'),
        (ROWS | {"test": [["x/3.jpg", True, "bee"]]}, r"test\[0\]\[1\] is true: must be a whole number"),
        (ROWS | {"test": [["x/3.jpg", -1, "bee"]]}, r"test\[0\]\[1\] is -1: must be at least 0"),
        (ROWS | {"test": [["x/3.jpg", 1, " "]]}, r'test\[0\]\[2\] is " ": must not be empty'),
        (ROWS | {"test": [["x/3.jpg", 1, "wasp"]]}, "label 1 has two class names, 'bee' and 'wasp'"),
        (ROWS | {"test": [["y/3.jpg", 1, "bee"]]}, r"1 of the 3 images named in .*split\.json are not in .*y/3\.jpg"),
        (ROWS | {"test": [["x/9.jpg", 1, "bee"]] * 7}, r"7 of the 9 .*and 2 more"),
    ],
)
def test_malformed(data_root, content, message):
    with pytest.raises(CoopError, match=message) as error:
        read(data_root, content)
    assert "split.json" in str(error.value)


def test_no_split_file_at_all(data_root):
    with pytest.raises(CoopError, match=r"set/nowhere\.json: this split file does not exist"):
        read_split_file(str(data_root), image_folders=["set/images"], split_file="nowhere.json")


def test_truncated_gzip(tmp_path):
    content = gzip.compress(json.dumps(ROWS).encode())
    (tmp_path / "split.json.gz").write_bytes(content[:-12])
    with pytest.raises(CoopError, match=r"not a readable split file"):
        load_rows(tmp_path / "split.json.gz")


def test_links_are_followed(data_root):
    (data_root / "set/images/x").rename(data_root / "elsewhere")
    (data_root / "set/images/x").symlink_to(data_root / "elsewhere")
    assert len(read(data_root, ROWS).train) == 2
    (data_root / "elsewhere/1.jpg").unlink()
    (data_root / "elsewhere/1.jpg").symlink_to(data_root / "gone.jpg")
    with pytest.raises(CoopError, match=r"1\.jpg: a link to .*gone\.jpg, which does not exist"):
        read(data_root, ROWS)


def test_packaged_splits_hold_the_published_counts():
    counts = {path.name: [len(part) for part in load_rows(path).values()] for path in PUBLISHED.glob("*.gz")}
    assert counts == {
        "split_zhou_Caltech101.json.gz": [4128, 1649, 2465],
        "split_zhou_DescribableTextures.json.gz": [2820, 1128, 1692],
        "split_zhou_EuroSAT.json.gz": [13500, 5400, 8100],
        "split_zhou_OxfordFlowers.json.gz": [4093, 1633, 2463],
        "split_zhou_OxfordPets.json.gz": [2944, 736, 3669],
        "split_zhou_StanfordCars.json.gz": [6509, 1635, 8041],
        "split_zhou_UCF101.json.gz": [7639, 1898, 3783],
    }


def test_rows_keep_their_label_when_a_class_is_only_tested(tmp_path):
    for name in ("1.jpg", "2.jpg"):
        (tmp_path / name).touch()
    rows = {"train": [["1.jpg", 0, "ant"]], "val": [], "test": [["2.jpg", 1, "bee"]]}
    splits = splits_from_rows(rows, tmp_path, tmp_path / "split.json", "own")
    assert (splits.classnames, splits.test[0].label) == (["ant", "bee"], 1)
