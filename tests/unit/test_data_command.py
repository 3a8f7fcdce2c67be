"""python -m coop.data: check, show, export, prepare, as a user calls them."""

import json
import runpy
import sys
from functools import partial

import numpy as np
import pytest
from PIL import Image

from coop.cli.command import exit_code
from coop.data.__main__ import load_config, main
from coop.data.manifest import apply_manifest
from coop.data.readers import read_dataset
from coop.data.readers.mini import read_mini
from coop.data.readers.split_file import PUBLISHED as SPLIT_FILES
from coop.data.readers.split_file import load_rows
from coop.data.tools.catalogue import PUBLISHED
from coop.data.tools.show import spread

run = partial(exit_code, main)


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)


@pytest.fixture(scope="module")
def images_of_textures(tmp_path_factory):
    """All of DTD, as empty files."""
    folder = tmp_path_factory.mktemp("textures")
    rows = load_rows(SPLIT_FILES / "split_zhou_DescribableTextures.json.gz")
    for row in (row for part in rows.values() for row in part):
        path = folder / row[0]
        path.parent.mkdir(exist_ok=True)
        path.touch()
    return folder


@pytest.fixture
def textures(tmp_path, images_of_textures):
    (tmp_path / "dtd").mkdir()
    (tmp_path / "dtd/images").symlink_to(images_of_textures)
    return tmp_path


def test_check_a_complete_one(textures, capsys):
    assert run(["check", "dtd", f"data_root={textures}"]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("dtd"))
    assert row.split() == ["dtd", "complete", "47", "2820", "1128", "1692", "published", str(textures / "dtd/images")]


def test_check_one_with_other_counts(textures, capsys):
    rows = load_rows(SPLIT_FILES / "split_zhou_DescribableTextures.json.gz")
    rows["test"] = rows["test"][:-2]
    (textures / "dtd/split_zhou_DescribableTextures.json").write_text(json.dumps(rows))
    assert run(["check", "dtd", f"data_root={textures}"]) == 1
    out = capsys.readouterr().out
    assert "counts differ" in out
    assert "counts are 2820/1128/1690 in 47 classes; published: 2820/1128/1692 in 47 classes" in out


def test_check_all_says_how_to_get_each(textures, capsys):
    assert run(["check", f"data_root={textures}"]) == 0
    out = capsys.readouterr().out
    for name in PUBLISHED:
        assert f"\n{name} " in out
    assert out.count("to get it:") == len(PUBLISHED) - 1
    assert out.count("not there") == len(PUBLISHED) - 1
    assert str(textures / "oxford_pets/images") in out


def test_check_without_data_root(capsys):
    assert run(["check", "caltech101"]) == 1
    assert "needs data_root=DIR" in capsys.readouterr().out


def test_check_a_damaged_one(textures, capsys):
    (textures / "dtd/split_zhou_DescribableTextures.json").write_text("{")
    assert run(["check", "dtd", f"data_root={textures}"]) == 1
    out = capsys.readouterr().out
    assert "not usable" in out and "not readable as JSON" in out


def test_check_own_folder(tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / "mine" / name).mkdir(parents=True)
        for index in range(10):
            (tmp_path / "mine" / name / f"{index}.jpg").touch()
    assert run(["check", "folder", f"dataset.path={tmp_path / 'mine'}"]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("folder"))
    assert row.split() == ["folder", "there", "2", "10", "4", "6", "generated", str(tmp_path / "mine")]


def test_export_then_follow(tmp_path):
    assert run(["export", "mini", "shots=4", "seed=2", "dataset.classes=base", "out=m.json"]) == 0
    content = json.loads((tmp_path / "m.json").read_text())
    assert (content["dataset"], content["shots"], content["seed"], content["classes"]) == ("mini", 4, 2, "base")
    assert [len(content[part]) for part in ("train", "val", "test")] == [13 * 4, 13 * 4, 13 * 20]
    followed = apply_manifest(read_mini(None), "m.json", shots=4, classes="base")
    assert [list(item)[1:] for item in followed.train] == [row[1:] for row in content["train"]]


def test_export_names_its_file_after_the_run(tmp_path, capsys):
    assert run(["export", "dataset=mini", "shots=1"]) == 0
    assert (tmp_path / "mini_shots1_seed1_all.json").is_file()
    assert "25 train, 25 val, 500 test images" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["mini", "mini_sketch"])
def test_show(tmp_path, name):
    assert run(["show", name, "shots=3", "out=x.png"]) == 0
    pixels = np.asarray(Image.open(tmp_path / "x.png").convert("RGB"), float)
    columns = 3 if name == "mini" else 8
    assert pixels.shape == (12 * 196 + 36, max(columns, 5) * 166 + 6, 3)
    tiles = pixels[36:196, : columns * 166]
    color = np.abs(tiles[..., 0] - tiles[..., 2]).mean()
    assert color < 0.1 if name == "mini_sketch" else color > 5, "shifted sets are shown as they are used"


def test_show_names_that_are_hard_to_draw(tmp_path):
    for name in ("été 'x' \"y\"", "写真", "a" * 200, "_$x^_"):
        (tmp_path / "mine" / name).mkdir(parents=True)
        for index in range(4):
            Image.new("RGB", (30, 20)).save(tmp_path / "mine" / name / f"{index}.png")
    assert run(["show", "folder", f"dataset.path={tmp_path / 'mine'}", "shots=1"]) == 0
    assert (tmp_path / "folder.png").is_file()


def test_own_config_file(tmp_path):
    for name in ("n01", "n02"):
        (tmp_path / "mine" / name).mkdir(parents=True)
        for index in range(4):
            (tmp_path / "mine" / name / f"{index}.jpg").touch()
    lines = [
        "_target_: coop.data.readers.folder.read_folder",
        "name: birds",
        'template: "a photo of a {}, a type of bird."',
        "classes: all",
        "epochs: null",
        f"path: {tmp_path}/mine",
        "classnames: {n01: great tit, n02: 'robin ''red'' / breast'}",
    ]
    (tmp_path / "conf/dataset").mkdir(parents=True)
    (tmp_path / "conf/dataset/birds.yaml").write_text("\n".join(lines))
    cfg = load_config("birds", [f"hydra.searchpath=[{tmp_path}/conf]"])
    assert read_dataset(cfg.dataset, None).classnames == ["great tit", "robin 'red' / breast"]


def test_spread():
    assert spread([1, 2, 3], 5) == [1, 2, 3]
    assert spread(list(range(100)), 12) == [0, 9, 18, 27, 36, 45, 54, 63, 72, 81, 90, 99]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["chekc"], "there is no such command; allowed are check, prepare, show, export"),
        (["check", "calteh101"], "near matches: caltech101"),
        (["show"], "give the name of one data set"),
        (["export", "mini", "dtd"], "give the name of one data set"),
        (["export", "mini", "shots=-3"], "shots=-3"),
        (["export", "mini", "dataset.clases=base"], "dataset.clases"),
        (["export", "mini", "--out", "x.json"], "options are dataset=, out="),
        (["export", "caltech101"], "needs data_root=DIR"),
        (["prepare", "caltech101"], "give data_root=DIR"),
        (["prepare", "imagenet_r", "data_root=."], "imagenet-rendition"),
    ],
)
def test_mistakes_end_with_one_message(words, message, capsys):
    assert run(words) == 1
    streams = capsys.readouterr()
    assert message in streams.err
    assert streams.err.startswith("\nerror: ") and "Traceback" not in streams.err


def test_prepare_does_nothing_when_complete(textures, capsys):
    assert run(["prepare", "dtd", f"data_root={textures}"]) == 0
    assert "complete already" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_from_the_command_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["coop.data"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("coop.data", run_name="__main__")
    assert not ended.value.code
    assert "check [NAME ...] data_root=DIR" in capsys.readouterr().out
