"""SUN397: scenes in nested folders (a/abbey, a/apartment_building/outdoor)."""

import os
import random
from collections import defaultdict
from pathlib import Path

from coop.data.readers.folder import Images, split_each_class, splits_of_items
from coop.data.readers.listing import Folders, find_folder, list_folder, log, read_lines, shorten, warn_left_out
from coop.data.readers.split_file import check_images, own_split_file, own_splits
from coop.data.sampling import Splits
from coop.errors import CoopError

VAL_SHARE = 0.2
DOWNLOAD = "Download it again"


def read_sun397(data_root: str | None, *, image_folders: Folders, split_file: str, seed: int) -> Splits:
    """Read SUN397, whose folders a/ to z/ lie in one of `image_folders`.

    What is taken, in this order: the user's split file in CoOp's format ("own"); the data set's own lists
    `Training_01.txt` and `Testing_01.txt`, whose test list is the paper's, with a fifth of each class's training list
    drawn for validation ("generated"); else 50/20/30 per class ("generated"). All sorted, by a fixed `seed`.

    Raises:
        CoopError: a folder or an image is missing, a class is empty or not in `ClassName.txt`, or a list is malformed.
    """
    images = find_folder(data_root, image_folders)
    own = own_split_file(data_root, images, split_file)
    if splits := own_splits(own, images):
        return splits
    train_list, test_list, class_list = (
        next((folder / name for folder in (own.parent, images) if (folder / name).is_file()), None)
        for name in ("Training_01.txt", "Testing_01.txt", "ClassName.txt")
    )
    if train_list and test_list:
        parts = split_by_lists(images, train_list, test_list, seed)
    else:
        parts = split_each_class(images, scene_images(images), seed)
    classes = class_order(images, sorted(parts["train"]), class_list)
    return splits_of_items(parts, classes, list(map(scene_name, classes)), "generated")


def scene_name(folder: str) -> str:
    """The class name of a folder, as in CoOp: a/apartment_building/outdoor is "outdoor apartment_building"."""
    return " ".join(reversed(folder.split("/")[1:]))


def scene_images(root: Path) -> Images:
    """Image paths by class folder (a/abbey).

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
    return found


def split_by_lists(root: Path, train_list: Path, test_list: Path, seed: int) -> dict[str, Images]:
    """The data set's own lists; a fifth of each class's training list, drawn by `seed`, is for validation."""
    listed_train, listed_test = (_read_list(root, path) for path in (train_list, test_list))
    rng = random.Random(seed)
    parts: dict[str, Images] = {"train": {}, "val": {}, "test": listed_test}
    for folder in sorted(listed_train.keys() | listed_test.keys()):
        train = listed_train[folder]
        val = set(rng.sample(train, round(len(train) * VAL_SHARE)))
        parts["train"][folder] = [path for path in train if path not in val]
        parts["val"][folder] = [path for path in train if path in val]
    return parts


def class_order(root: Path, there: list[str], class_list: Path | None) -> list[str]:
    """Class folders in the order of `ClassName.txt`, or as they are if there is none."""
    if class_list is None:
        return there
    listed = [line.strip("/") for line in read_lines(class_list, DOWNLOAD)]
    if unlisted := sorted(set(there) - set(listed)):
        raise CoopError(f"{root}: class folders that are not in {class_list}: {shorten(unlisted)}. Move them away")
    if absent := [folder for folder in listed if folder not in there]:
        log.warning("%s: %d classes of %s have no folder: %s", root, len(absent), class_list, shorten(absent))
    return [folder for folder in listed if folder in there]


def _read_list(root: Path, path: Path) -> Images:
    """Sorted image paths by class folder, from lines such as /a/abbey/sun_x.jpg; all of them are there."""
    images: Images = defaultdict(list)
    lines = sorted(line.strip("/") for line in read_lines(path, DOWNLOAD))
    check_images(root, lines, path)
    for line in lines:
        images[os.path.dirname(line)].append(os.path.join(root, line))
    return images
