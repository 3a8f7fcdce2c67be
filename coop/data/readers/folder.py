"""A user's own photographs: one folder per class, with or without train/val/test folders above them."""

import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path

from coop.data.readers.classnames import read_classnames
from coop.data.readers.listing import list_folder, log, shorten, warn_left_out
from coop.data.sampling import PARTS, Item, Splits
from coop.errors import CoopError

VAL_NAMES = ("val", "valid", "validation")
PART_OF = {"train": "train", "test": "test"} | dict.fromkeys(VAL_NAMES, "val")  # splits by the names users give them
TRAIN_SHARE, VAL_SHARE = 0.5, 0.2

Names = dict[str | int, str] | str | None  # by label, or the path of a list
Images = dict[str, list[str]]  # paths by class, such as a class folder
InOrder = Callable[[Images], list[str]]


def read_folder(data_root: str | None, *, path: str | None = None, classnames: Names = None, seed: int = 1) -> Splits:
    """Read class folders.

    With `train` and `test` (and `val`, `valid` or `validation`) folders inside, these are the splits. Without them,
    each class is split 50/20/30, and `origin` is "generated". Class names are the folders' names.

    Args:
        data_root: not used.
        path: the folder that holds the class folders, or the train/val/test folders.
        classnames: names other than the folders': a mapping, folder to name, or a file of `folder name` lines.
        seed: seed of the 50/20/30 split; another seed gives another test set.

    Raises:
        CoopError: no folder given, no classes, an empty class, a wrong folder level, or a class that train lacks.
    """
    if not path:
        raise CoopError("dataset=folder needs dataset.path=DIR, the folder that holds one folder per class")
    root = Path(path).expanduser()
    parts = {part: class_images(root / name) for part, name in split_folders(root).items()}
    return splits_of_classes(root, parts, seed, classnames)


def splits_of_classes(
    source: Path, parts: dict[str, Images], seed: int, classnames: Names = None, in_order: InOrder = sorted
) -> Splits:
    """The user's own splits of images by class; a part that is alone, of any name, is split 50/20/30 by `seed`.

    `source` is the data set, for messages. `in_order` gives the training classes in the order of their labels.

    Raises:
        CoopError: val or test has a class that train lacks, a class has no name, or nothing is left to test on.
    """
    origin = "own"
    if len(parts) == 1:
        parts, origin = split_each_class(source, *parts.values(), seed), "generated"
    check_classes(source, parts)
    classes = in_order(parts["train"])
    return splits_of_items(parts, classes, name_classes(classes, classnames, source), origin)


def splits_of_items(parts: dict[str, Images], classes: Sequence[str], names: list[str], origin: str) -> Splits:
    """Splits of images by class; labels are positions in `classes`, whose names for the text encoder are `names`."""

    def items(images: Images) -> list[Item]:
        return [Item(path, label, names[label]) for label, one in enumerate(classes) for path in images.get(one, [])]

    return Splits(*(items(parts.get(part, {})) for part in PARTS), names, origin)


def split_folders(root: Path) -> dict[str, str]:
    """Names of the folders that hold train, val and test; one part, "all", if `root` holds the class folders itself."""
    listing = list_folder(root)
    if "train" not in listing.folders or list_folder(root / "train").images:
        return {"all": "."}  # a class may be called "train"; then images lie right in it
    vals = [name for name in VAL_NAMES if name in listing.folders]
    if len(vals) > 1:
        raise CoopError(f"{root}: both {vals[0]}/ and {vals[1]}/ are there; keep one of them as the validation folder")
    if "test" not in listing.folders:
        raise CoopError(
            f"{root}: there is train/ but no test/ (found: {shorten(listing.folders)}). Accuracy is measured on "
            "test/: rename a folder to test/, or have a folder of classes alone split 50/20/30 (dataset.path)"
        )
    if extra := sorted(set(listing.folders) - {"train", "test", *vals}):
        log.warning("%s: these folders stand beside train/ and test/ and are left out: %s", root, shorten(extra))
    return {PART_OF[name]: name for name in ("train", *vals, "test")}


def class_images(root: Path) -> Images:
    """List the class folders of `root`: image paths by folder name, both sorted.

    Raises:
        CoopError: no class folders, a class without images, or folders of the wrong level.
    """
    top = list_folder(root)
    if not top.folders:
        what = f"{len(top.images)} images but no class folders" if top.images else "no class folders"
        raise CoopError(f"{root}: holds {what}. Expected one folder per class, its images inside: {root}/CLASS/x.jpg")
    listings = {name: list_folder(root / name) for name in top.folders}
    _check_levels(root, listings)
    others = [f"{name}/{other}" for name, listing in listings.items() for other in listing.others]
    warn_left_out(root, [*top.images, *top.others, *others])
    base = str(root)
    return {name: [os.path.join(base, name, image) for image in listing.images] for name, listing in listings.items()}


def _check_levels(root: Path, listings: dict) -> None:
    deeper = [name for name, listing in listings.items() if listing.folders and not listing.images]
    if deeper:
        raise CoopError(
            f"{root}: the folder {deeper[0]}/ holds folders ({shorten(listings[deeper[0]].folders)}) and no images. "
            f"If those are the classes, give {root / deeper[0]} instead; splits are called train, val and test"
        )
    empty = [name for name, listing in listings.items() if not listing.images]
    if empty:
        raise CoopError(f"{root}: no images in the class folder {shorten(empty)}. Add images or remove the folder")
    mixed = [f"{name}/{inner}" for name, listing in listings.items() for inner in listing.folders]
    if mixed:
        log.warning("%s: folders inside class folders are left out: %s", root, shorten(mixed))


def check_classes(root: Path, parts: dict[str, Images]) -> None:
    """Raise CoopError where val or test holds a class that train lacks; the other way round is a warning."""
    train = set(parts["train"])
    for part, images in parts.items():
        if unknown := sorted(set(images) - train):
            raise CoopError(
                f"{root}: {part} has classes that train has not: {shorten(unknown)}. A class has to have the same name "
                "in all splits (upper and lower case too); rename or move them"
            )
        if images and (absent := sorted(train - set(images))):
            log.warning("%s: classes without images in %s: %s", root, part, shorten(absent))


def split_each_class(root: Path, images: Images, seed: int) -> dict[str, Images]:
    """Split each class 50/20/30 into train, val and test; one generator, classes and images in sorted order."""
    rng = random.Random(seed)
    parts: dict[str, Images] = {"train": {}, "val": {}, "test": {}}
    for name in sorted(images):
        shuffled = rng.sample(sorted(images[name]), len(images[name]))
        num_train, num_val = split_sizes(len(shuffled))
        parts["train"][name] = shuffled[:num_train]
        parts["val"][name] = shuffled[num_train : num_train + num_val]
        parts["test"][name] = shuffled[num_train + num_val :]
    if single := sorted(name for name, paths in images.items() if len(paths) == 1):
        log.warning("%s: classes of a single image, which is in train; none in test: %s", root, shorten(single))
    if not any(parts["test"].values()):
        raise CoopError(f"{root}: every class has a single image, so nothing is left to test on. Add images")
    return parts


def split_sizes(count: int) -> tuple[int, int]:
    """Numbers of training and validation images out of `count`; at least one of each is kept for train and test."""
    num_train = max(1, round(count * TRAIN_SHARE))
    return num_train, max(0, min(round(count * VAL_SHARE), count - num_train - 1))


def name_classes(folders: Sequence[str], names: Names, root: Path) -> list[str]:
    """Names of the class folders: their own, or those given, one for each; a name without a folder is a warning."""
    if names is None:
        return list(folders)
    source = names if isinstance(names, str) else "dataset.classnames"
    by_folder = read_classnames(names) if isinstance(names, str) else {str(key): str(names[key]) for key in names}
    if unlisted := [folder for folder in folders if folder not in by_folder]:
        raise CoopError(
            f"{root}: classes that are not in {source}: {shorten(unlisted)}. Give each of them a name there, or take "
            "it out of the data set"
        )
    if absent := [folder for folder in by_folder if folder not in set(folders)]:
        log.warning("%s: %d classes of %s have no images: %s", root, len(absent), source, shorten(absent))
    return [by_folder[folder] for folder in folders]
