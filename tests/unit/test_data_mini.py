"""The bundled mini data set, and its synthetic shifts."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from coop.data.images import open_image
from coop.data.readers.mini import MINI, SHIFTS, read_mini
from coop.data.readers.split_file import PUBLISHED, load_rows


def test_counts_and_size():
    splits = read_mini(None)
    assert len(splits.classnames) == len(set(splits.classnames)) == 25
    for part, count in (("train", 16), ("val", 4), ("test", 20)):
        assert Counter(item.label for item in getattr(splits, part)) == dict.fromkeys(range(25), count)
    files = [path for path in MINI.rglob("*") if path.is_file()]
    assert len([path for path in files if path.suffix == ".jpg"]) == 1000
    assert sum(path.stat().st_size for path in files) < 6e6
    assert (MINI / "ATTRIBUTION.md").is_file()


def test_keeps_to_the_published_split_and_names():
    published = load_rows(PUBLISHED / "split_zhou_Caltech101.json.gz")
    splits = read_mini(None)
    for part in ("train", "val", "test"):
        names = {path: name for path, _, name in published[part]}
        for item in getattr(splits, part):
            assert names["/".join(Path(item.path).parts[-2:])] == item.classname


def test_photographs_are_small_rgb():
    for item in read_mini(None).test[::50]:
        image = open_image(item.path)
        assert image.mode == "RGB"
        assert min(image.size) <= 160


@pytest.mark.parametrize("shift", SHIFTS)
def test_shifted_sets_are_test_sets_of_the_same_photographs(shift):
    splits, plain = read_mini(None, shift=shift), read_mini(None)
    assert (splits.train, splits.val) == ([], [])
    assert splits.test == plain.test
    assert splits.classnames == plain.classnames
    assert splits.preprocess is SHIFTS[shift]


@pytest.mark.parametrize("shift", SHIFTS)
def test_shifts_are_deterministic_and_matter(shift):
    item = read_mini(None).test[45]
    plain, first = np.asarray(open_image(item.path), float), open_image(item.path, SHIFTS[shift])
    np.random.seed(5)
    assert open_image(item.path, SHIFTS[shift]).tobytes() == first.tobytes()
    assert (first.mode, first.size) == ("RGB", plain.shape[1::-1])
    assert np.abs(np.asarray(first, float) - plain).mean() > 4


def test_what_the_shifts_do():
    ramp = np.tile(np.arange(0, 256, 2, dtype=np.uint8)[None, :, None], (100, 1, 3))
    ramp[..., 0] = 255 - ramp[..., 0]
    image = Image.fromarray(ramp)
    gray = np.asarray(SHIFTS["grayscale"](image))
    assert (gray[..., 0] == gray[..., 1]).all() and (gray[..., 1] == gray[..., 2]).all()
    step = Image.fromarray(np.repeat(np.uint8([[40] * 50 + [220] * 50] * 100)[..., None], 3, axis=2))
    blurred = np.asarray(SHIFTS["blur"](step), float)[50, :, 0]
    assert 120 < blurred[49:51].mean() < 140 and blurred[5] == 40 and blurred[-5] == 220
    flat = Image.new("RGB", (200, 200), (128, 128, 128))
    noise = np.asarray(SHIFTS["noise"](flat), float) - 128
    assert abs(noise.mean()) < 1 and 50 < noise.std() < 62  # 60, less what is clipped
    lines = np.asarray(SHIFTS["sketch"](step))[50, :, 0]
    assert lines[5] == lines[-5] == lines[55] == 255 and lines[49] < 80, "a line on the dark side of the edge alone"


def test_equals_a_rebuild_from_caltech101(tmp_path, monkeypatch):
    data_root = os.environ.get("COOP_TEST_DATA")
    if not data_root or not Path(data_root, "caltech-101/101_ObjectCategories").is_dir():
        pytest.skip("COOP_TEST_DATA does not name a folder that holds caltech-101/")
    import runpy

    monkeypatch.setattr("coop.data.readers.mini.MINI", tmp_path)
    script = Path(__file__).parents[2] / "experiments/mini_dataset/build.py"
    runpy.run_path(str(script))["main"](data_root)
    assert (tmp_path / "split_mini.json").read_bytes() == (MINI / "split_mini.json").read_bytes()
    bundled = sorted(path.relative_to(MINI) for path in MINI.rglob("*.jpg"))
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.jpg")) == bundled
    for path in bundled[::40]:
        rebuilt, kept = (np.asarray(open_image(str(root / path)), float) for root in (tmp_path, MINI))
        assert np.abs(rebuilt - kept).mean() < 2  # JPEG libraries differ a little
