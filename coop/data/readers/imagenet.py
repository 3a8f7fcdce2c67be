"""ImageNet's own layout, one folder per wnid, and its shifted test sets: V2, Sketch, A and R."""

import gc
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Literal

from coop.data.readers.classnames import imagenet_classnames, imagenet_wnids, read_classnames
from coop.data.readers.index import list_class_folders
from coop.data.readers.listing import Folders, find_folder, list_folder, log, shorten, warn_left_out
from coop.data.sampling import Item, Splits
from coop.errors import CoopError


def read_imagenet(data_root: str | None, *, folders: Folders) -> Splits:
    """Read ImageNet: train/WNID/*.JPEG for training, val/WNID/*.JPEG for testing; there is no validation list.

    One of `folders` holds train/ and val/. Labels are the sorted wnids that are there. Class names come from
    `classnames.txt` (lines of `wnid name`, CoOp's) beside or above train/ where it exists, else from open_clip's list.

    Raises:
        CoopError: train/ or val/ is missing, they differ in classes, or a folder is not in the list of classes.
    """
    root = find_folder(data_root, [f"{folder}/train" for folder in folders]).parent
    if not (root / "val").is_dir():
        raise CoopError(
            f"{root}: there is train/ but no val/. The 50000 validation images, one folder per wnid, are what "
            f"accuracy is measured on; expected at {root / 'val'}/WNID/"
        )
    names, source = wnid_names([root, root.parent])
    there, in_val = (class_folders(root / part, list(names), source) for part in ("train", "val"))
    if differ := sorted(set(there) ^ set(in_val)):
        raise CoopError(f"{root}: these classes are in only one of train/ and val/: {shorten(differ)}. Complete both")
    if len(there) != len(names):
        log.warning("%s: %d of the %d classes of %s are there", root, len(there), len(names), source)
    classnames = {wnid: names[wnid] for wnid in there}
    train, test = (class_items(root / part, there, classnames) for part in ("train", "val"))
    return Splits(train, [], test, list(classnames.values()))


def read_imagenet_shift(
    data_root: str | None,
    *,
    folders: Folders,
    classes_of: Literal["imagenet", "imagenet-a", "imagenet-r"] = "imagenet",
    numbered: bool = False,
) -> Splits:
    """Read a shifted test set of ImageNet: a test list alone.

    K is always the full number of classes, so that a missing folder (a warning) does not make the task easier. Class
    names come from `classnames.txt` in the data set's folder or in `imagenet/`, else from open_clip's list.

    Args:
        data_root: see `coop.data.readers`.
        folders: one of them holds the class folders.
        classes_of: all 1000 classes, or the 200 of ImageNet-A or ImageNet-R, which are classified among themselves.
        numbered: class folders are named 0 to 999 in label order (ImageNetV2) instead of by wnid.

    Raises:
        CoopError: the folder is missing, or holds a class folder that is not one of the data set's.
    """
    root = find_folder(data_root, folders)
    names, source = wnid_names([root, root.parent, Path(data_root).expanduser() / "imagenet"])
    wnids = imagenet_wnids(classes_of)
    if unnamed := [wnid for wnid in wnids if wnid not in names]:
        raise CoopError(
            f"{source}: lacks {len(unnamed)} classes of {classes_of}: {shorten(unnamed)}. Add lines for them"
        )
    keys = [str(label) for label in range(len(wnids))] if numbered else wnids
    classnames = dict(zip(keys, (names[wnid] for wnid in wnids), strict=True))
    there = class_folders(root, keys, "this data set")
    if absent := sorted(set(keys) - set(there)):
        log.warning("%s: %d of the %d class folders are missing: %s", root, len(absent), len(keys), shorten(absent))
    return Splits([], [], class_items(root, there, classnames), list(classnames.values()))


def wnid_names(places: list[Path]) -> tuple[dict[str, str], str]:
    """Class names by wnid, and where they come from: `classnames.txt` in one of the places, else open_clip's list."""
    for folder in places:
        if (folder / "classnames.txt").is_file():
            return read_classnames(folder / "classnames.txt"), str(folder / "classnames.txt")
    return imagenet_classnames(), "open_clip's list"


def class_folders(root: Path, known: list[str], source: str) -> list[str]:
    """The class folders of `root`, sorted; raises CoopError where there are none, or one is not `known`."""
    top = list_folder(root)
    if not top.folders:
        raise CoopError(f"{root}: holds no class folders ({len(top.images)} images). Expected {root}/CLASS/*.JPEG")
    if unknown := sorted(set(top.folders) - set(known)):
        raise CoopError(
            f"{root}: {len(unknown)} folders are not classes of {source}: {shorten(unknown)}. "
            f"Expected one folder per class, such as {known[0]}; move others away"
        )
    warn_left_out(root, top.images)  # other files may stand there: ImageNet-A and -R come with a README
    return top.folders


@contextmanager
def paused_gc() -> Iterator[None]:
    """Pause garbage collection: a million new tuples set it off again and again, and none of them is garbage."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@paused_gc()
def class_items(root: Path, folders: list[str], classnames: Mapping[str, str]) -> list[Item]:
    """Items of class folders, which must not be empty; labels are positions in `classnames`."""
    labels = {folder: label for label, folder in enumerate(classnames)}
    items: list[Item] = []
    empty, others = [], []
    make_item = partial(tuple.__new__, Item)  # a third faster than Item(...), which a million of them show
    for folder, listing in list_class_folders(root, folders):
        prefix = os.path.join(root, folder, "")
        paths = map(prefix.__add__, listing.images)
        items.extend(map(make_item, zip(paths, repeat(labels[folder]), repeat(classnames[folder]), strict=False)))
        others += [f"{folder}/{name}" for name in (*listing.others, *listing.folders)]
        if not listing.images:
            empty.append(folder)
    if empty:
        raise CoopError(f"{root}: no images in {len(empty)} class folders: {shorten(empty)}. Unpack them again")
    warn_left_out(root, others)
    return items
