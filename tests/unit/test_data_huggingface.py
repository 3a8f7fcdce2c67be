"""A user's own Hugging Face data set, from local files."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from coop.data.images import open_image
from coop.data.readers.huggingface import image_paths, read_huggingface
from coop.errors import CoopError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("COOP_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    module = pytest.importorskip("datasets")
    monkeypatch.setattr(module.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    module.disable_progress_bars()
    return module


def image(value: int) -> Image.Image:
    return Image.new("RGB", (8, 6), (value, 0, 255 - value))


def make(datasets, labels: list[int], start: int = 0, names=("wasp", "ant", "bee")):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(names))})
    rows = {"image": [image(start + index) for index in range(len(labels))], "label": labels}
    return datasets.Dataset.from_dict(rows, features=features)


def colors(items) -> list[int]:
    return [int(np.asarray(open_image(item.path))[0, 0, 0]) for item in items]


def test_saved_splits(datasets, tmp_path):
    parts = {
        "train": make(datasets, [2, 0, 1, 2]),
        "validation": make(datasets, [1], 50),
        "test": make(datasets, [0, 1, 2], 100),
        "extra": make(datasets, [0], 200),
    }
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    splits = read_huggingface(None, path=str(tmp_path / "saved"))
    assert splits.classnames == ["wasp", "ant", "bee"]
    assert [item.label for item in splits.train] == [0, 1, 2, 2]
    assert colors(splits.train) == [1, 2, 0, 3]
    assert (colors(splits.val), colors(splits.test), splits.origin) == ([50], [100, 101, 102], "own")


def test_unpacks_once_and_again_when_files_change(datasets, tmp_path):
    folder = tmp_path / "parquet"
    folder.mkdir()
    make(datasets, [0, 1, 2] * 4).to_parquet(folder / "train.parquet")
    first = read_huggingface(None, path=str(folder), seed=1)
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")}
    assert read_huggingface(None, path=str(folder), seed=1) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")} == stamps
    make(datasets, [0, 1, 2] * 4, start=90).to_parquet(folder / "train.parquet")
    assert min(colors(read_huggingface(None, path=str(folder), seed=1).train)) >= 90


def test_single_split_is_split_50_20_30(datasets, tmp_path):
    make(datasets, [0, 1] * 10).save_to_disk(tmp_path / "saved")
    splits = read_huggingface(None, path=str(tmp_path / "saved"), seed=1)
    assert (len(splits.train), len(splits.val), len(splits.test), splits.origin) == (10, 4, 6, "generated")
    assert splits.classnames == ["wasp", "ant"], "a class without images is not one"
    everything = colors([*splits.train, *splits.val, *splits.test])
    assert sorted(everything) == list(range(20))
    assert all(value % 2 == item.label for value, item in zip(colors(splits.test), splits.test, strict=True))


def test_folder_of_image_files_is_not_copied(datasets, tmp_path):
    for part in ("train", "test"):
        for name in ("ant", "bee"):
            (tmp_path / "data" / part / name).mkdir(parents=True)
            for index in range(3):
                image(index).save(tmp_path / "data" / part / name / f"{index}.png")
    splits = read_huggingface(None, path=str(tmp_path / "data"))
    assert splits.classnames == ["ant", "bee"]
    assert Path(splits.train[0].path) == tmp_path / "data/train/ant/0.png"
    assert len(splits.test) == 6


def test_columns(datasets, tmp_path):
    data = make(datasets, [0, 1] * 5).rename_columns({"image": "photo", "label": "species"})
    data.save_to_disk(tmp_path / "saved")
    with pytest.raises(CoopError, match=r"no column 'image'; give dataset\.image_column=NAME, one of photo, species"):
        read_huggingface(None, path=str(tmp_path / "saved"))
    with pytest.raises(CoopError, match=r"'species' does not hold images"):
        read_huggingface(None, path=str(tmp_path / "saved"), image_column="species", label_column="photo")
    splits = read_huggingface(None, path=str(tmp_path / "saved"), image_column="photo", label_column="species")
    assert len(splits.test) == 4


def test_text_labels(datasets, tmp_path):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    rows = {"image": [image(index) for index in range(8)], "label": ["café", "ant"] * 4}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved")
    assert read_huggingface(None, path=str(tmp_path / "saved")).classnames == ["ant", "café"]


def test_unhappy(datasets, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CoopError, match=r"can't load this folder"):
        read_huggingface(None, path=str(tmp_path / "empty"))
    with pytest.raises(CoopError, match=r"this folder does not exist"):
        read_huggingface(None, path=str(tmp_path / "nowhere"))
    parts = {"train": make(datasets, [0, 1]), "dev": make(datasets, [0, 1])}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    with pytest.raises(CoopError, match=r"has the splits train, dev; expected train and test"):
        read_huggingface(None, path=str(tmp_path / "saved"))


def test_data_sets_of_equal_length_share_nothing(datasets, tmp_path):
    """In memory, where no file tells them apart; selections from the same files."""
    first, second = make(datasets, [0, 1, 2]), make(datasets, [0, 1, 2], start=90)
    shown = [[int(np.asarray(open_image(path))[0, 0, 0]) for path in image_paths(part, "image")]
             for part in (first, second, first)]  # fmt: skip
    assert shown == [[0, 1, 2], [90, 91, 92], [0, 1, 2]]
    make(datasets, [0] * 6).save_to_disk(tmp_path / "saved")
    whole = datasets.load_from_disk(str(tmp_path / "saved"))
    halves = [image_paths(whole.select(rows), "image") for rows in ([0, 1, 2], [3, 4, 5], [0, 2, 4])]
    values = [[int(np.asarray(open_image(path))[0, 0, 0]) for path in paths] for paths in halves]
    assert values == [[0, 1, 2], [3, 4, 5], [0, 2, 4]]


def test_saved_data_sets_in_memory_share_nothing(datasets, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "IN_MEMORY_MAX_SIZE", 10**9)
    seen = []
    for start in (0, 100):
        make(datasets, [0, 1] * 5, start).save_to_disk(tmp_path / str(start))
        splits = read_huggingface(None, path=str(tmp_path / str(start)))
        seen.append(sorted(colors([*splits.train, *splits.val, *splits.test])))
    assert seen == [list(range(10)), list(range(100, 110))]


def test_package_or_path_missing(monkeypatch):
    with pytest.raises(CoopError, match=r"needs dataset.path=DIR"):
        read_huggingface(None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(CoopError, match=r"pip install 'coop-clip\[datasets\]'"):
        read_huggingface(None, path="x")
