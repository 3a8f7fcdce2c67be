"""Split files in CoOp's format: {"train": [[image path, label, class name], ...], "val": [...], "test": [...]}."""

import gzip
import os
import zlib
from collections import Counter
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict

from coop.data.readers.listing import Folders, find_folder, list_folder, log, other_case, shorten
from coop.data.sampling import Item, Splits
from coop.errors import CoopError
from coop.system.validation import MOST_CLASSES, NOT_EMPTY, between, parse_json

PUBLISHED = Path(__file__).parents[2] / "assets" / "splits"

Rows = dict[str, list[tuple[str, int, str]]]
FORM = 'Expected {"train": [[image path, label, class name], ...], "val": [...], "test": [...]}'
Row = tuple[Annotated[str, NOT_EMPTY], Annotated[int, between(0, MOST_CLASSES)], Annotated[str, NOT_EMPTY]]


class SplitFile(BaseModel):
    """A split file: rows of [image path, label, class name]; labels start at 0."""

    model_config = ConfigDict(strict=True)
    train: Annotated[list[Row], NOT_EMPTY]
    val: list[Row] = []
    test: Annotated[list[Row], NOT_EMPTY]


def read_split_file(data_root: str | None, *, image_folders: Folders, split_file: str) -> Splits:
    """Read a data set whose images are listed in a split file such as `split_zhou_Caltech101.json`.

    The user's own split file stands in the data set's folder (the first part of the images' folder); without one, the
    published file that comes with the package is taken. Its image paths start from one of `image_folders`.

    Returns:
        The splits; `origin` is "published" where the split equals the published one, "own" for another file.

    Raises:
        CoopError: a folder or an image is missing, or the split file is not of this format.
    """
    images = find_folder(data_root, image_folders)
    own, packaged = own_split_file(data_root, images, split_file), PUBLISHED / f"{split_file}.gz"
    if splits := own_splits(own, images):
        return splits
    if packaged.is_file():
        return splits_from_rows(load_rows(packaged), images, packaged, "published")
    raise CoopError(f"{own}: this split file does not exist, and none of its name comes with the package")


def own_split_file(data_root: str, images: Path, split_file: str) -> Path:
    """Where the user's own split file stands, if there is one: in the first folder beneath `data_root`."""
    root = Path(data_root).expanduser()
    return root / images.relative_to(root).parts[0] / split_file


def own_splits(own: Path, images: Path) -> Splits | None:
    """By the user's own split file, if there is one; a copy of the published file is published, too."""
    if not own.is_file():
        return None
    rows, packaged = load_rows(own), PUBLISHED / f"{own.name}.gz"
    same = packaged.is_file() and load_rows(packaged) == rows
    return splits_from_rows(rows, images, own, "published" if same else "own")


def load_rows(path: Path) -> Rows:
    """Load a split file (gzip if its name ends in .gz) and check its form.

    Raises:
        CoopError: it cannot be read, or is not of this form; names the entry.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except PermissionError:
        raise CoopError(f"{path}: no permission to read this split file. Fix it with: chmod u+r '{path}'") from None
    except (OSError, EOFError, zlib.error) as error:
        raise CoopError(f"{path}: not a readable split file ({error}). Copy or download it again") from None
    return parse_json(content, SplitFile, str(path), f"{FORM}; copy or download the split file again").model_dump()


def splits_from_rows(rows: Rows, folder: Path, source: Path, origin: str) -> Splits:
    """Turn checked rows into items: labels without gaps, image paths under `folder`, every image seen on disk."""
    names = names_by_label(rows, source)
    label_of = {label: position for position, label in enumerate(names)}
    paths = [row[0] for part in rows.values() for row in part]
    check_images(folder, paths, source)
    if repeated := [path for path, count in Counter(paths).items() if count > 1]:
        many = f"{len(repeated)} images stand there more than once, perhaps in training and test"
        log.warning("%s: %s: %s", source, many, shorten(repeated))
    items = {
        part: [Item(os.path.join(folder, path), label_of[label], name) for path, label, name in listed]
        for part, listed in rows.items()
    }
    return Splits(**items, classnames=list(names.values()), origin=origin)


def names_by_label(rows: Rows, source: Path) -> dict[int, str]:
    """Class names by label, sorted by label; a warning if labels are missing in between."""
    names: dict[int, str] = {}
    for part in rows.values():
        for path, label, name in part:
            if names.setdefault(label, name) != name:
                raise CoopError(
                    f"{source}: label {label} has two class names, {names[label]!r} and {name!r} ({path}). "
                    "Give every class a label of its own."
                )
    gaps = [str(label) for label in range(max(names)) if label not in names]
    if gaps:
        log.warning("%s: no image has the labels %s; the labels above them move down", source, shorten(gaps))
    return dict(sorted(names.items()))


def check_images(folder: Path, paths: list[str], source: Path) -> None:
    """Check that all images exist, by listing each folder once; raises CoopError with the first that are missing."""
    present = {parent: _names_in(folder / parent) for parent in {os.path.dirname(path) for path in paths}}
    missing = [path for path in paths if os.path.basename(path) not in present[os.path.dirname(path)]]
    if missing:
        found = other_case(folder, missing[0])
        hint = f" There is {found}, whose name differs in case." if found else ""
        raise CoopError(
            f"{len(missing)} of the {len(paths)} images named in {source} are not in {folder}: {shorten(missing)}."
            f"{hint} Unpack the data set again, or name a split file that fits the images."
        )


def _names_in(folder: Path) -> set[str]:
    if not folder.is_dir():
        return set()
    listing = list_folder(folder)
    return {*listing.images, *listing.others}
