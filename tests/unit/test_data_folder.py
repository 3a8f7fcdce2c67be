"""A user's own class folders."""

import os
from pathlib import Path

import pytest

from coop.data.readers.folder import read_folder, split_sizes
from coop.data.sampling import Splits
from coop.errors import CoopError


def fill(root: Path, counts: dict[str, int], suffix: str = "jpg") -> Path:
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True)
        for index in range(count):
            (root / folder / f"{index:02d}.{suffix}").touch()
    return root


def read(root: Path, **options) -> Splits:
    return read_folder(None, path=str(root), **options)


def names(items) -> list[str]:
    return ["/".join(Path(item.path).parts[-2:]) for item in items]


def test_without_splits_50_20_30(tmp_path):
    splits = read(fill(tmp_path, {"dog": 20, "Cat's eye": 10, "été": 3}), seed=1)
    assert splits.classnames == ["Cat's eye", "dog", "été"]
    assert splits.origin == "generated"
    for part, counts in (("train", [5, 10, 2]), ("val", [2, 4, 0]), ("test", [3, 6, 1])):
        assert [sum(item.label == label for item in getattr(splits, part)) for label in range(3)] == counts
    everything = names([*splits.train, *splits.val, *splits.test])
    assert len(set(everything)) == len(everything) == 33


def test_split_depends_on_the_seed_and_on_nothing_else(tmp_path):
    root = fill(tmp_path, {"dog": 20, "cat": 10})
    first = read(root, seed=1)
    assert read(root, seed=1) == first
    assert read(root, seed=2) != first
    assert names(first.train)[:5] == ["cat/02.jpg", "cat/01.jpg", "cat/04.jpg", "cat/00.jpg", "cat/03.jpg"]


@pytest.mark.parametrize(
    ("count", "sizes"), [(1, (1, 0)), (2, (1, 0)), (3, (2, 0)), (4, (2, 1)), (10, (5, 2)), (1000, (500, 200))]
)
def test_split_sizes_leave_something_to_test(count, sizes):
    assert split_sizes(count) == sizes
    assert count == 1 or count - sum(sizes) >= 1


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_with_splits(tmp_path, val):
    root = fill(tmp_path, {"train/b": 3, "train/a": 2, f"{val}/a": 1, f"{val}/b": 1, "test/a": 4, "test/b": 2})
    splits = read(root)
    assert names(splits.train) == ["a/00.jpg", "a/01.jpg", "b/00.jpg", "b/01.jpg", "b/02.jpg"]
    assert (len(splits.val), len(splits.test), splits.origin) == (2, 6, "own")
    assert [item.label for item in splits.test] == [0, 0, 0, 0, 1, 1]


def test_val_is_optional(tmp_path):
    splits = read(fill(tmp_path, {"train/a": 2, "train/b": 2, "test/a": 1, "test/b": 1}))
    assert (len(splits.train), len(splits.val), len(splits.test)) == (4, 0, 2)


def test_a_class_may_be_called_train(tmp_path):
    splits = read(fill(tmp_path, {"train": 10, "bus": 10}))
    assert splits.classnames == ["bus", "train"]


@pytest.mark.parametrize("suffix", ["JPG", "jpeg", "png", "webp", "TIFF", "bmp", "ppm"])
def test_extensions(tmp_path, suffix):
    assert len(read(fill(tmp_path, {"a": 10, "b": 10}, suffix)).train) == 10


def test_what_is_left_out_is_named(tmp_path, caplog):
    root = fill(tmp_path, {"a": 4, "b": 4, "b/crops": 2})
    for name in ("a/notes.txt", "readme.md", "a/.DS_Store", "loose.jpg"):
        (root / name).touch()
    (root / ".git").mkdir()
    assert len(read(root).classnames) == 2
    assert "3 files are not images and are left out: loose.jpg, readme.md, a/notes.txt" in caplog.text
    assert "folders inside class folders are left out: b/crops" in caplog.text


def test_classnames_file(tmp_path, caplog):
    root = fill(tmp_path / "data", {"n01": 4, "n 02": 4})
    (tmp_path / "names.txt").write_text('n01\ttabby cat\nn 02\tGrüner Baum-/"Ast"\nn03\tunused\n', encoding="utf-8")
    splits = read(root, classnames=str(tmp_path / "names.txt"))
    assert splits.classnames == ['Grüner Baum-/"Ast"', "tabby cat"]
    assert "1 classes of" in caplog.text and "n03" in caplog.text
    (tmp_path / "names.txt").write_text("n01 tabby cat\n")
    with pytest.raises(CoopError, match=r"classes that are not in .*names\.txt: n 02"):
        read(root, classnames=str(tmp_path / "names.txt"))


def test_classnames_in_the_config(tmp_path):
    root = fill(tmp_path, {"n01": 4, "n02": 4})
    assert read(root, classnames={"n02": "crane", "n01": "heron"}).classnames == ["heron", "crane"]
    with pytest.raises(CoopError, match=r"classes that are not in dataset\.classnames: n02"):
        read(root, classnames={"n01": "crane"})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\n", "line 1: 'a' has no class name"),
        ("a x\n\na y\n", "line 3: the folder 'a' stands there twice"),
        ("\n", "is empty"),
        (None, "can't read this list"),
    ],
)
def test_malformed_classnames_file(tmp_path, content, message):
    if content is not None:
        (tmp_path / "names.txt").write_text(content)
    with pytest.raises(CoopError, match=message):
        read(fill(tmp_path / "data", {"a": 4, "b": 4}), classnames=str(tmp_path / "names.txt"))


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ({}, "holds no class folders"),
        ({".": 3}, "holds 3 images but no class folders. Expected one folder per class"),
        ({"a": 3, "b": 0}, "no images in the class folder b"),
        ({"data/a": 3, "data/b": 3}, r"folder data/ holds folders \(a, b\) and no images. If those .* give .*/data"),
        ({"training/a": 3, "testing/a": 3}, "splits are called train, val and test"),
        ({"train/a": 3, "val/a": 3}, r"train/ but no test/ \(found: train, val\)"),
        ({"train/a": 3, "val/a": 3, "valid/a": 1, "test/a": 3}, "both val/ and valid/"),
        ({"train/a": 3, "test/a": 3, "test/b": 1}, "test has classes that train has not: b"),
        ({"train/a": 3, "test/A": 3}, "test has classes that train has not: A.*upper and lower case"),
        ({"train/a": 3, "val/c": 1, "test/a": 3}, "val has classes that train has not: c"),
        ({"a": 1, "b": 1}, "every class has a single image"),
    ],
)
def test_unhappy(tmp_path, folders, message):
    for folder, count in folders.items():
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            (tmp_path / folder / f"{index}.jpg").touch()
    with pytest.raises(CoopError, match=message):
        read(tmp_path)


def test_warnings(tmp_path, caplog):
    read(fill(tmp_path / "one", {"a": 1, "b": 4}))
    assert "classes of a single image, which is in train; none in test: a" in caplog.text
    read(fill(tmp_path / "two", {"train/a": 3, "train/b": 3, "test/a": 3, "extra/a": 1}))
    assert "classes without images in test: b" in caplog.text
    assert "beside train/ and test/ and are left out: extra" in caplog.text


def test_no_path_and_no_folder(tmp_path):
    with pytest.raises(CoopError, match=r"needs dataset.path=DIR"):
        read_folder(None)
    with pytest.raises(CoopError, match=r"this folder does not exist"):
        read(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(CoopError, match=r"is a file where a folder was expected"):
        read(tmp_path / "file")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="the superuser may read everything")
def test_unreadable_folder(tmp_path):
    root = fill(tmp_path, {"a": 3, "b": 3})
    (root / "a").chmod(0)
    with pytest.raises(CoopError, match=r"no permission to read this folder"):
        read(root)


def test_linked_class_folders(tmp_path):
    fill(tmp_path / "real", {"a": 4})
    fill(tmp_path / "data", {"b": 4})
    (tmp_path / "data/a").symlink_to(tmp_path / "real/a")
    assert read(tmp_path / "data").classnames == ["a", "b"]
    (tmp_path / "data/c").symlink_to(tmp_path / "nowhere")
    with pytest.raises(CoopError, match=r"data/c: a link to .*nowhere, which does not exist"):
        read(tmp_path / "data")


def test_pipes_and_links_that_lead_back_up_are_left_out_and_named(tmp_path, caplog):
    root = fill(tmp_path / "data", {"ant": 4, "bee": 4})
    os.mkfifo(root / "ant" / "pipe.jpg")
    (root / "loop").symlink_to(root)
    (root / "ant" / "up").symlink_to("..")
    (root / "bee" / "here").symlink_to(".")
    splits = read(root)
    assert splits.classnames == ["ant", "bee"]
    assert len([*splits.train, *splits.val, *splits.test]) == 8
    assert "4 files are not images and are left out: loop, ant/pipe.jpg, ant/up, bee/here" in caplog.text


@pytest.mark.parametrize("name", [b"caf\xe9", b"ant/caf\xe9.jpg"])
def test_names_that_are_not_utf_8_are_refused(tmp_path, name):
    root = fill(tmp_path / "data", {"ant": 4, "bee": 4})
    path = os.fsencode(root) + b"/" + name
    os.mkdir(path) if b"." not in name else open(path, "wb").close()
    with pytest.raises(CoopError, match=r"caf\\xe9(\.jpg)?: this name is not UTF-8 .*Rename it"):
        read(root)


def test_other_alphabets_are_utf_8(tmp_path):
    assert read(fill(tmp_path / "data", {"café": 3, "写真": 3})).classnames == ["café", "写真"]
