"""A user's own CSV file."""

from pathlib import Path

import pytest

from coop.data.readers.table import read_csv
from coop.errors import CoopError


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for index in range(10):
            (tmp_path / name / f"{index}.jpg").touch()
    return tmp_path


def write(folder: Path, text: str) -> str:
    (folder / "list.csv").write_text(text, encoding="utf-8")
    return str(folder / "list.csv")


def test_with_splits_keeps_the_files_order(folder):
    text = (
        "path,label,split\n"
        "b/3.jpg,bee,train\n"
        'a/1.jpg,"ant, ""red"" / été",train\n'
        "b/1.jpg,bee,train\n"
        'a/2.jpg,"ant, ""red"" / été",valid\n'
        "b/2.jpg,bee,test\n"
        'a/0.jpg,"ant, ""red"" / été",test\n'
    )
    splits = read_csv(None, path=write(folder, text))
    assert splits.classnames == ['ant, "red" / été', "bee"]
    assert [(item.path, item.label) for item in splits.train] == [
        (str(folder / "a/1.jpg"), 0),
        (str(folder / "b/3.jpg"), 1),
        (str(folder / "b/1.jpg"), 1),
    ]
    assert (len(splits.val), len(splits.test), splits.origin) == (1, 2, "own")


def test_without_splits_50_20_30_whatever_the_rows_order(folder):
    rows = [f"{name}/{index}.jpg,{name}" for name in "ab" for index in range(10)]
    splits = read_csv(None, path=write(folder, "path,label\n" + "\n".join(rows)), seed=1)
    assert (len(splits.train), len(splits.val), len(splits.test), splits.origin) == (10, 4, 6, "generated")
    again = read_csv(None, path=write(folder, "path, label\n" + "\n".join(reversed(rows)) + "\n\n"), seed=1)
    assert [sorted(part) for part in (again.train, again.val, again.test)] == [
        sorted(part) for part in (splits.train, splits.val, splits.test)
    ]
    assert read_csv(None, path=write(folder, "path,label\n" + "\n".join(rows)), seed=2).test != splits.test


def test_numbers_sort_by_value_and_get_names(folder):
    rows = [f"{name}/{index}.jpg,{label}" for name, label in (("a", 10), ("b", 9)) for index in range(10)]
    path = write(folder, "path,label\n" + "\n".join(rows))
    assert read_csv(None, path=path).classnames == ["9", "10"]
    (folder / "names.txt").write_text("9 bumble bee\n10 ant\n")
    assert read_csv(None, path=path, classnames=str(folder / "names.txt")).classnames == ["bumble bee", "ant"]
    assert read_csv(None, path=path, classnames={9: "bumble bee", 10: "ant"}).classnames == ["bumble bee", "ant"]


def test_images_elsewhere_and_absolute_paths(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("lists")
    rows = ["path,label,split", "a/1.jpg,ant,train", f"{folder}/a/2.jpg,ant,test"]
    splits = read_csv(None, path=write(elsewhere, "\n".join(rows)), images=str(folder))
    assert [item.path for item in (*splits.train, *splits.test)] == [str(folder / "a/1.jpg"), str(folder / "a/2.jpg")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the first line is ''"),
        ("a/1.jpg,ant\n", "the first line is 'a/1.jpg,ant'; expected path,label or path,label,split"),
        ("label,path\n", "expected path,label"),
        ("path,label\n", "no rows below"),
        ("path,label\na/1.jpg\n", "line 2: expected 2 values, none of them empty"),
        ("path,label\na/1.jpg,\n", "line 2: expected 2 values"),
        ("path,label\na/1.jpg,ant,train\n", "line 2: expected 2 values"),
        ("path,label,split\na/1.jpg,ant,dev\n", "line 2: split is 'dev'; allowed are train, test, val, valid, val"),
        ("path,label,split\na/1.jpg,ant,train\n", "needs rows of both train and test"),
        ("path,label,split\na/1.jpg,ant,train\nb/1.jpg,bee,test\n", "test has classes that train has not: bee"),
        (
            "path,label,split\na/1.jpg,ant,train\na/1.jpg,ant,test\n",
            r"a/1\.jpg stands there twice, .*,train and .*,test",
        ),
        ("path,label\na/1.jpg,ant\na/./1.jpg,bee\n", "stands there twice"),
        ("path,label\na/1.jpg,ant\nc/1.jpg,ant\na/99.jpg,ant\n", r"2 of the 3 images named in .*c/1\.jpg, a/99\.jpg"),
    ],
)
def test_malformed(folder, text, message):
    with pytest.raises(CoopError, match=message) as error:
        read_csv(None, path=write(folder, text))
    assert "list.csv" in str(error.value)


def test_missing_or_not_text(tmp_path):
    with pytest.raises(CoopError, match=r"dataset=csv needs dataset.path=FILE"):
        read_csv(None)
    with pytest.raises(CoopError, match=r"can't be read as a CSV file"):
        read_csv(None, path=str(tmp_path / "nowhere.csv"))
    (tmp_path / "x.csv").write_bytes(b"path,label\n\xff\xfe,a\n")
    with pytest.raises(CoopError, match=r"can't be read as a CSV file in UTF-8"):
        read_csv(None, path=str(tmp_path / "x.csv"))


def test_repeated_row_is_warned_about(folder, caplog):
    """Where the file itself splits, it can be meant; split by us, the two could be for training and for testing."""
    rows = [f"{name}/{index}.jpg,{name},{'train' if index else 'test'}" for name in "ab" for index in range(10)]
    read_csv(None, path=write(folder, "path,label,split\n" + "\n".join([*rows, rows[0]])))
    assert "1 rows stand there twice" in caplog.text
