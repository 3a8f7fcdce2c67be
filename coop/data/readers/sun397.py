"""SUN397: scenes in nested folders (a/abbey, a/apartment_building/outdoor)."""

import os
import random
from collections import defaultdict
from pathlib import Path

from coop.data.readers.folder import Images, split_each_class, to_items
from coop.data.readers.listing import Folders, find_folder, list_folder, log, shorten, warn_left_out
from coop.data.readers.split_file import check_images, load_rows, own_split_file, splits_from_rows
from coop.data.sampling import Splits
from coop.errors import CoopError

TRAIN_LIST, TEST_LIST, CLASS_LIST = "Training_01.txt", "Testing_01.txt", "ClassName.txt"
VAL_SHARE = 0.2


def read_sun397(data_root: str | None, *, image_folders: Folders, split_file: str, seed: int) -> Splits:
    """Read SUN397.

    What is taken, in this order: the user's split file in CoOp's format ("own"); the data set's own lists
    `Training_01.txt` and `Testing_01.txt`, whose test list is the paper's, with a fifth of each class's training list
    drawn for validation ("generated"); else 50/20/30 per class ("generated"). All sorted, by a fixed seed.

    Args:
        data_root: the folder that holds the data sets.
        image_folders: folders, relative to `data_root`, that may hold the folders a/ to z/.
        split_file: name of the split file, in the data set's folder.
        seed: seed of what is generated.

    Raises:
        CoopError: a folder or an image is missing, a class is empty or not in `ClassName.txt`, or a list is malformed.
    """
    images = find_folder(data_root, image_folders)
    own = own_split_file(data_root, images, split_file)
    if own.is_file():
        return splits_from_rows(load_rows(own), images, own, "own")
    places = [own.parent, images]
    train_list, test_list = (_first(places, name) for name in (TRAIN_LIST, TEST_LIST))
    if train_list and test_list:
        parts = split_by_lists(images, train_list, test_list, seed)
    else:
        parts = split_each_class(images, scene_images(images), seed)
    classes = class_order(images, parts, _first(places, CLASS_LIST))
    classnames = [scene_name(folder) for folder in classes]
    items = {part: to_items(by_class, classes, classnames) for part, by_class in parts.items()}
    return Splits(**items, classnames=classnames, origin="generated")


def scene_name(folder: str) -> str:
    """The class name of a folder, as in CoOp: a/apartment_building/outdoor is "outdoor apartment_building"."""
    return " ".join(reversed(folder.split("/")[1:]))


def scene_images(root: Path) -> Images:
    """Image paths by class folder (a/abbey), both sorted.

    Raises:
        CoopError: no images, or folders of the wrong level.
    """
    found: Images = {}
    others = []
    for path, _, _ in sorted(os.walk(root, followlinks=True)):
        listing = list_folder(path)
        folder = Path(path).relative_to(root).as_posix()
        if listing.images and "/" not in folder:
            raise CoopError(
                f"{root}: images lie in {folder}/. Expected a letter and a class above them: {root}/a/abbey/x.jpg"
            )
        if listing.images:
            found[folder] = [os.path.join(path, name) for name in listing.images]
            others += [f"{folder}/{name}" for name in listing.others]
        elif not listing.folders:
            raise CoopError(f"{path}: this class folder has no images. Unpack it again, or remove it")
    if not found:
        raise CoopError(f"{root}: holds no images. Expected {root}/a/abbey/*.jpg and so on")
    warn_left_out(root, others)
    return dict(sorted(found.items()))


def split_by_lists(root: Path, train_list: Path, test_list: Path, seed: int) -> dict[str, Images]:
    """The data set's own lists; a fifth of each class's training list, drawn by `seed`, is for validation."""
    listed = {part: _read_list(path) for part, path in (("train", train_list), ("test", test_list))}
    for part, path in (("train", train_list), ("test", test_list)):
        check_images(root, [f"{folder}/{name}" for folder, names in listed[part].items() for name in names], path)
    rng = random.Random(seed)
    parts: dict[str, Images] = {"train": {}, "val": {}, "test": {}}
    for folder in sorted(listed["train"].keys() | listed["test"].keys()):
        train, test = ([os.path.join(root, folder, name) for name in listed[part].get(folder, [])] for part in listed)
        val = set(rng.sample(train, round(len(train) * VAL_SHARE)))
        parts["train"][folder] = [path for path in train if path not in val]
        parts["val"][folder] = [path for path in train if path in val]
        parts["test"][folder] = test
    return parts


def class_order(root: Path, parts: dict[str, Images], class_list: Path | None) -> list[str]:
    """Class folders in the order of `ClassName.txt`, or sorted if there is none."""
    there = sorted({folder for by_class in parts.values() for folder in by_class})
    if class_list is None:
        return there
    listed = [line.strip("/") for line in _read_lines(class_list)]
    if unlisted := sorted(set(there) - set(listed)):
        raise CoopError(f"{root}: class folders that are not in {class_list}: {shorten(unlisted)}. Move them away")
    if absent := [folder for folder in listed if folder not in set(there)]:
        log.warning("%s: %d classes of %s have no folder: %s", root, len(absent), class_list, shorten(absent))
    return [folder for folder in listed if folder in set(there)]


def _read_list(path: Path) -> dict[str, list[str]]:
    """Sorted image names by class folder, from lines such as /a/abbey/sun_x.jpg."""
    names = defaultdict(list)
    for line in _read_lines(path):
        folder, _, name = line.strip("/").rpartition("/")
        names[folder].append(name)
    return {folder: sorted(names[folder]) for folder in sorted(names)}


def _read_lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise CoopError(f"{path}: can't read this list ({error}). Download it again") from None


def _first(places: list[Path], name: str) -> Path | None:
    return next((place / name for place in places if (place / name).is_file()), None)
