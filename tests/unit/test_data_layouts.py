"""Every data set of the paper, read from a miniature in CoOp's and in torchvision's layout, by its config file."""

import json
import logging
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from configs import composed

from coop.config import check
from coop.data.readers import read_dataset, split_file
from coop.data.readers.classnames import imagenet_wnids
from coop.data.readers.split_file import PUBLISHED as SPLIT_FILES
from coop.data.readers.split_file import load_rows
from coop.data.sampling import Splits
from coop.data.tools.catalogue import PUBLISHED
from coop.data.tools.check import count, report
from coop.errors import CoopError

SPLIT_SETS = {
    "caltech101": (["caltech-101/101_ObjectCategories", "caltech101/101_ObjectCategories"], "Caltech101"),
    "oxford_pets": (["oxford_pets/images", "oxford-iiit-pet/images"], "OxfordPets"),
    "stanford_cars": (["stanford_cars"], "StanfordCars"),
    "oxford_flowers": (["oxford_flowers/jpg", "flowers-102/jpg"], "OxfordFlowers"),
    "dtd": (["dtd/images", "dtd/dtd/images"], "DescribableTextures"),
    "eurosat": (["eurosat/2750"], "EuroSAT"),
    "ucf101": (["ucf101/UCF-101-midframes"], "UCF101"),
    "food101": (["food-101/images"], "Food101"),
    "sun397": (["sun397/SUN397", "SUN397"], "SUN397"),
}
SPLIT_LAYOUTS = [(name, folder) for name, (folders, _) in SPLIT_SETS.items() for folder in folders]
CLASS_ORDER = imagenet_wnids()


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("COOP_CACHE", str(tmp_path / "cache"))


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def write_split(path: Path, rows: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows), encoding="utf-8")


def read(name: str, root: Path, *options: str) -> Splits:
    cfg = composed(f"dataset={name}", f"data_root={root}", *options)
    check(cfg)
    return read_dataset(cfg.dataset, cfg.data_root)


def names(items, root: Path) -> list[str]:
    return [Path(item.path).relative_to(root).as_posix() for item in items]


OWN_ROWS = {
    "train": [["b/1.jpg", 1, "bee"], ["a/1.jpg", 0, 'ant\'s "nest"'], ["b/2.jpg", 1, "bee"]],
    "val": [["a/2.jpg", 0, 'ant\'s "nest"']],
    "test": [["c/1.jpg", 2, "Käfer / beetle"], ["a/3.jpg", 0, 'ant\'s "nest"']],
}


@pytest.mark.parametrize(("name", "folder"), SPLIT_LAYOUTS)
def test_own_split_file(tmp_path, name, folder):
    for part in OWN_ROWS.values():
        for row in part:
            touch(tmp_path / folder / row[0])
    split = tmp_path / folder.split("/")[0] / f"split_zhou_{SPLIT_SETS[name][1]}.json"
    write_split(split, OWN_ROWS)
    splits = read(name, tmp_path)
    assert names(splits.train, tmp_path / folder) == ["b/1.jpg", "a/1.jpg", "b/2.jpg"]
    assert [item.label for item in splits.train] == [1, 0, 1]
    assert [item.label for item in splits.test] == [2, 0]
    assert splits.classnames == ['ant\'s "nest"', "bee", "Käfer / beetle"]
    assert splits.origin == "own"


def pretend(monkeypatch, folder: Path, rows: dict) -> None:
    """That all images of a split lie there: test_data_command.py lists all of one on the disk, which takes seconds."""
    folder.mkdir(parents=True)
    present = defaultdict(set)
    for path in (folder / row[0] for part in rows.values() for row in part):
        present[path.parent].add(path.name)
    monkeypatch.setattr(split_file, "_names_in", present.__getitem__)


@pytest.mark.parametrize("name", [name for name in SPLIT_SETS if name not in ("food101", "sun397")])
def test_published_split(tmp_path, monkeypatch, name):
    folders, file = SPLIT_SETS[name]
    rows = load_rows(SPLIT_FILES / f"split_zhou_{file}.json.gz")
    pretend(monkeypatch, tmp_path / folders[-1], rows)
    found = report(name, lambda: read(name, tmp_path))
    assert found.state == "complete", found.notes
    assert found.splits.origin == "published"
    assert count(found.splits) == PUBLISHED[name].counts
    assert [[*map(str, names(found.splits.val[:3], tmp_path / folders[-1]))]] == [[row[0] for row in rows["val"][:3]]]


def test_own_copy_of_the_published_file_is_published(tmp_path, monkeypatch):
    rows = load_rows(SPLIT_FILES / "split_zhou_DescribableTextures.json.gz")
    pretend(monkeypatch, tmp_path / "dtd/images", rows)
    write_split(tmp_path / "dtd/split_zhou_DescribableTextures.json", rows)
    assert read("dtd", tmp_path).origin == "published"
    rows["test"] = rows["test"][:-1]
    write_split(tmp_path / "dtd/split_zhou_DescribableTextures.json", rows)
    assert read("dtd", tmp_path).origin == "own"


def test_absent_images_are_counted(tmp_path):
    for part in OWN_ROWS.values():
        for row in part:
            touch(tmp_path / "eurosat/2750" / row[0])
    write_split(tmp_path / "eurosat/split_zhou_EuroSAT.json", OWN_ROWS)
    (tmp_path / "eurosat/2750/b/2.jpg").unlink()
    (tmp_path / "eurosat/2750/c/1.jpg").rename(tmp_path / "eurosat/2750/c/1.JPG")
    with pytest.raises(CoopError) as error:
        read("eurosat", tmp_path)
    message = str(error.value)
    assert "2 of the 6 images" in message
    assert "b/2.jpg, c/1.jpg" in message
    (tmp_path / "eurosat/2750/b/2.jpg").touch()
    with pytest.raises(CoopError, match=r"1 of the 6.*There is c/1\.JPG, whose name differs in case"):
        read("eurosat", tmp_path)


# Data set's own lists


@pytest.mark.parametrize("folder", ["fgvc_aircraft", "fgvc-aircraft-2013b/data"])
def test_aircraft(tmp_path, folder):
    root = tmp_path / folder
    for image in ("0000001", "0000002", "0000003", "0000004"):
        touch(root / "images" / f"{image}.jpg")
    (root / "variants.txt").write_text("A300B4\nF/A-18\n")
    (root / "images_variant_train.txt").write_text("0000003 F/A-18\n0000001 A300B4\n")
    (root / "images_variant_val.txt").write_text("0000002 A300B4\n")
    (root / "images_variant_test.txt").write_text("0000004 F/A-18\n")
    splits = read("fgvc_aircraft", tmp_path)
    assert splits.classnames == ["A300B4", "F/A-18"]
    assert names(splits.train, root) == ["images/0000003.jpg", "images/0000001.jpg"]
    assert [item.label for item in splits.train] == [1, 0]
    assert splits.origin == "published"
    (root / "images_variant_test.txt").write_text("0000004 F-18\n")
    with pytest.raises(CoopError, match=r"images_variant_test\.txt, line 1: 'F-18' is not in variants\.txt"):
        read("fgvc_aircraft", tmp_path)
    (root / "variants.txt").unlink()
    with pytest.raises(CoopError, match=r"variants\.txt: can.t read this list of the data set.*Unpack FGVCAircraft"):
        read("fgvc_aircraft", tmp_path)


def test_food101_is_generated_without_a_split_file(tmp_path):
    for name in ("waffles", "apple_pie"):
        for index in range(10):
            touch(tmp_path / "food-101/images" / name / f"{index}.jpg")
    splits = read("food101", tmp_path)
    assert splits.origin == "generated"
    assert splits.classnames == ["apple_pie", "waffles"]
    assert count(splits) == (10, 4, 6)
    assert Counter(item.label for item in splits.train) == {0: 5, 1: 5}
    assert {item.path for part in (splits.train, splits.val, splits.test) for item in part} == {
        str(path) for path in (tmp_path / "food-101/images").rglob("*.jpg")
    }
    first_class = tmp_path / "food-101/images/apple_pie"
    assert names(splits.train[:5], first_class) == ["2.jpg", "1.jpg", "4.jpg", "0.jpg", "3.jpg"]
    assert read("food101", tmp_path, "seed=7") == splits, "the run's seed must not move the split"
    assert read("food101", tmp_path, "dataset.seed=7") != splits


def sun(root: Path, count: int = 10) -> None:
    for folder in ("a/abbey", "a/apartment_building/outdoor", "z/zoo"):
        for index in range(count):
            touch(root / folder / f"sun_{index}.jpg")


@pytest.mark.parametrize("folder", ["sun397/SUN397", "SUN397"])
def test_sun397_is_generated_without_lists(tmp_path, folder):
    sun(tmp_path / folder)
    (tmp_path / folder / "ClassName.txt").write_text("/a/abbey\n/a/apartment_building/outdoor\n/z/zoo\n")
    splits = read("sun397", tmp_path)
    assert splits.origin == "generated"
    assert splits.classnames == ["abbey", "outdoor apartment_building", "zoo"]
    assert count(splits) == (15, 6, 9)
    assert all(Path(item.path).parent.name == ("abbey", "outdoor", "zoo")[item.label] for item in splits.test)


def test_sun397_keeps_its_own_test_list(tmp_path):
    sun(tmp_path / "sun397/SUN397")
    listed = [f"/{folder}/sun_{index}.jpg" for folder in ("z/zoo", "a/abbey") for index in range(10)]
    (tmp_path / "sun397/Training_01.txt").write_text("\n".join(listed[:5] + listed[10:15]) + "\n")
    (tmp_path / "sun397/Testing_01.txt").write_text("\n".join(listed[5:10] + listed[15:]) + "\n")
    splits = read("sun397", tmp_path)
    assert splits.origin == "generated"
    assert splits.classnames == ["abbey", "zoo"]
    assert count(splits) == (8, 2, 10)
    assert set(names(splits.test, tmp_path / "sun397/SUN397")) == {line[1:] for line in listed[5:10] + listed[15:]}
    assert not {item.path for item in splits.train} & {item.path for item in splits.val}


def test_sun397_unhappy(tmp_path):
    root = tmp_path / "sun397/SUN397"
    sun(root)
    (root / "ClassName.txt").write_text("/a/abbey\n/z/zoo\n")
    with pytest.raises(CoopError, match=r"not in .*ClassName\.txt: a/apartment_building/outdoor"):
        read("sun397", tmp_path)
    (root / "ClassName.txt").unlink()
    touch(root / "abbey/sun_1.jpg")
    with pytest.raises(CoopError, match=r"images lie in abbey/\. Expected a letter and a class"):
        read("sun397", tmp_path)


# ImageNet and its shifts


def imagenet(root: Path, wnids: list[str], parts=("train", "val"), images: int = 2) -> None:
    for part in parts:
        for wnid in wnids:
            for index in range(images):
                touch(root / part / wnid / f"{part}_{index}.JPEG")


def test_imagenet_without_a_folder_of_images(tmp_path):
    imagenet(tmp_path / "imagenet", CLASS_ORDER[:3])
    splits = read("imagenet", tmp_path)
    assert count(splits) == (6, 0, 6)
    assert names(splits.train[:3], tmp_path / "imagenet/train") == [
        "n01440764/train_0.JPEG",
        "n01440764/train_1.JPEG",
        "n01443537/train_0.JPEG",
    ]
    assert [item.label for item in splits.test] == [0, 0, 1, 1, 2, 2]


def test_imagenet(tmp_path, caplog):
    imagenet(tmp_path / "imagenet/images", CLASS_ORDER, images=1)
    splits = read("imagenet", tmp_path)
    assert count(splits) == (1000, 0, 1000)
    assert splits.classnames[:2] == ["tench", "goldfish"]
    assert len(splits.classnames) == 1000
    assert [item.label for item in splits.test] == list(range(1000))
    assert "'sunglasses' (labels 836, 837)" in caplog.text


def test_imagenet_classnames_file_comes_first(tmp_path, caplog):
    imagenet(tmp_path / "imagenet/images", CLASS_ORDER[:3])
    lines = ["n01440764 a tench, really", "n01443537 goldfish", "n01484850 great white shark", "n01491361 tiger shark"]
    (tmp_path / "imagenet/classnames.txt").write_text("\n".join(lines))
    splits = read("imagenet", tmp_path)
    assert splits.classnames == ["a tench, really", "goldfish", "great white shark"]
    assert "3 of the 4 classes" in caplog.text


def test_imagenet_unhappy(tmp_path):
    root = tmp_path / "imagenet/images"
    imagenet(root, CLASS_ORDER[:2], parts=("train",))
    with pytest.raises(CoopError, match=r"there is train/ but no val/"):
        read("imagenet", tmp_path)
    imagenet(root, CLASS_ORDER[:1], parts=("val",))
    with pytest.raises(CoopError, match=r"only one of train/ and val/: n01443537"):
        read("imagenet", tmp_path)
    (root / "val/n01443537").mkdir()
    with pytest.raises(CoopError, match=r"no images in 1 class folders: n01443537"):
        read("imagenet", tmp_path)
    touch(root / "train/tench/x.JPEG")
    with pytest.raises(CoopError, match=r"1 folders are not classes of open_clip's list: tench"):
        read("imagenet", tmp_path)


def test_imagenet_with_its_validation_images_unsorted(tmp_path):
    imagenet(tmp_path / "imagenet/images", CLASS_ORDER[:2], parts=("train",))
    touch(tmp_path / "imagenet/images/val/ILSVRC2012_val_00000001.JPEG")
    with pytest.raises(CoopError, match=r"val: holds no class folders \(1 images\)"):
        read("imagenet", tmp_path)


def test_imagenet_extra_files_are_named(tmp_path, caplog):
    imagenet(tmp_path / "imagenet/images", CLASS_ORDER[:2])
    touch(tmp_path / "imagenet/images/val/n01440764/notes.txt")
    touch(tmp_path / "imagenet/images/val/n01440764/.DS_Store")
    assert len(read("imagenet", tmp_path).test) == 4
    assert "1 files are not images and are left out: n01440764/notes.txt" in caplog.text


def test_imagenetv2_folders_are_numbered_in_class_order(tmp_path):
    root = tmp_path / "imagenetv2/imagenetv2-matched-frequency-format-val"
    for label in range(1000):
        touch(root / str(label) / "x.jpeg")
    splits = read("imagenetv2", tmp_path)
    assert count(splits) == (0, 0, 1000)
    by_label = {item.label: item for item in splits.test}
    assert all(Path(by_label[label].path).parent.name == str(label) for label in range(1000))
    assert (by_label[2].classname, by_label[10].classname) == ("great white shark", "brambling")


@pytest.mark.parametrize(
    ("name", "folder", "subset", "first"),
    [
        ("imagenet_sketch", "imagenet-sketch/images", "imagenet", "tench"),
        ("imagenet_a", "imagenet-adversarial/imagenet-a", "imagenet-a", "stingray"),
        ("imagenet_r", "imagenet-rendition/imagenet-r", "imagenet-r", "goldfish"),
    ],
)
def test_imagenet_shifts(tmp_path, name, folder, subset, first, caplog):
    wnids = imagenet_wnids(subset)
    for wnid in wnids:
        touch(tmp_path / folder / wnid / "x.jpg")
    touch(tmp_path / folder / "README.txt")
    splits = read(name, tmp_path)
    assert len(splits.classnames) == len(wnids) == PUBLISHED[name].classes
    assert splits.classnames[0] == first
    assert [Path(item.path).parent.name for item in splits.test] == sorted(wnids)
    (tmp_path / folder / wnids[3] / "x.jpg").unlink()
    (tmp_path / folder / wnids[3]).rmdir()
    with caplog.at_level(logging.WARNING):
        assert read(name, tmp_path).classnames == splits.classnames, "a missing folder must not make the task easier"
    assert f"1 of the {len(wnids)} class folders are missing: {wnids[3]}" in caplog.text
    touch(tmp_path / folder / "n00000000/x.jpg")
    with pytest.raises(CoopError, match=r"1 folders are not classes of this data set: n00000000"):
        read(name, tmp_path)


def test_shift_takes_imagenets_class_names(tmp_path):
    touch(tmp_path / "imagenet-adversarial/imagenet-a/n01498041/x.jpg")
    lines = [f"{wnid} name of {wnid}" for wnid in CLASS_ORDER]
    touch(tmp_path / "imagenet/classnames.txt")
    (tmp_path / "imagenet/classnames.txt").write_text("\n".join(lines))
    assert read("imagenet_a", tmp_path).test[0].classname == "name of n01498041"
    (tmp_path / "imagenet/classnames.txt").write_text("\n".join(lines[:5]))
    with pytest.raises(CoopError, match=r"lacks 200 classes of imagenet-a"):
        read("imagenet_a", tmp_path)


# Where the data set should be


@pytest.mark.parametrize("name", PUBLISHED)
def test_missing_data_root_and_folder(tmp_path, name):
    cfg = composed(f"dataset={name}")
    with pytest.raises(CoopError, match=r"needs data_root=DIR, where DIR is the folder that holds"):
        read_dataset(cfg.dataset, None)
    with pytest.raises(CoopError, match=r"this folder does not exist"):
        read(name, tmp_path / "nowhere")
    (tmp_path / "other").mkdir()
    with pytest.raises(CoopError, match=r"looked for the folder .*which does not exist\. It holds: other"):
        read(name, tmp_path)


def test_wrong_level_of_data_root(tmp_path):
    (tmp_path / "data/dtd/images").mkdir(parents=True)
    with pytest.raises(CoopError, match=rf"one level up: data_root={tmp_path}/data"):
        read("dtd", tmp_path / "data/dtd")
    with pytest.raises(CoopError, match=rf"one level down: data_root={tmp_path}/data"):
        read("dtd", tmp_path)


def test_case_of_a_folder(tmp_path):
    (tmp_path / "DTD/Images").mkdir(parents=True)
    with pytest.raises(CoopError, match=r"There is .*DTD/Images, whose name differs in case"):
        read("dtd", tmp_path)
