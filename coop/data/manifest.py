"""The exact images of a run as a JSON file that travels with a paper, and runs from such a file."""

import hashlib
import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict

from coop.data.readers.listing import shorten
from coop.data.readers.split_file import Row
from coop.data.sampling import PARTS, Item, Splits
from coop.data.support import apply_support, is_support, load_support
from coop.errors import CoopError
from coop.system.files import check_utf8, write_atomically
from coop.system.validation import NOT_EMPTY, read_json

FORMAT = "coop-manifest-1"
HOW = "write one with: python -m coop.data export NAME"


class Manifest(BaseModel):
    """What a manifest file holds; rows are [image path, label, class name]."""

    model_config = ConfigDict(strict=True)
    format: Literal["coop-manifest-1"]
    dataset: str
    shots: int
    seed: int
    classes: Literal["all", "base", "new"]
    origin: Literal["published", "generated", "own"]
    classnames: Annotated[list[Annotated[str, NOT_EMPTY]], NOT_EMPTY]
    train: list[Row]  # empty for a data set to test on
    val: list[Row]
    test: Annotated[list[Row], NOT_EMPTY]


def write_manifest(
    path: str | os.PathLike, whole: Splits, sampled: Splits, *, dataset: str, shots: int, seed: int, classes: str
) -> None:
    """Write what a run trains, validates and tests on.

    Rows are those of CoOp's split files, `[image path, label, class name]`, so that other projects can read them. Paths
    start from the deepest folder that holds all images of the data set, so a manifest fits wherever the data set lies.

    Args:
        path: the file to write.
        whole: the data set as its reader gives it.
        sampled: what is left of it by `shots`, `seed` and `classes`.
        dataset: its name.
        shots: as in the run's config; so are `seed` and `classes`.

    Raises:
        CoopError: an image whose name is not UTF-8, or a file that cannot be written.
    """
    folder, parts = common_folder(whole), []
    for part in PARTS:
        rows = []
        for item in getattr(sampled, part):
            check_utf8(item.path)
            rows.append("\n" + json.dumps([_relative(item.path, folder), item.label, item.classname]))
        parts.append(f'"{part}": [{",".join(rows)}' + ("\n]" if rows else "]"))
    head = {"format": FORMAT, "dataset": dataset, "shots": shots, "seed": seed, "classes": classes}
    head |= {"origin": sampled.origin, "classnames": sampled.classnames}
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    write_atomically(Path(path), ("{\n" + ",\n".join(lines + parts) + "\n}\n").encode())


def common_folder(splits: Splits) -> str:
    """The deepest folder that holds all images."""
    paths = [item.path for item in splits.items()]
    # In sorted order the first and the last differ the most.
    return os.path.commonpath([os.path.dirname(min(paths)), os.path.dirname(max(paths))])


def _relative(path: str, folder: str) -> str:
    return path[len(folder) :].lstrip(os.sep).replace(os.sep, "/")


def apply_manifest(splits: Splits, path: str, *, shots: int, classes: str = "all") -> Splits:
    """Take exactly the images that a manifest lists, in its order; nothing is sampled any more.

    Args:
        splits: the same data set as its reader gives it.
        path: the manifest, or a support set as others publish it (`coop.data.support`).
        shots: the run's shots, which have to be the manifest's.
        classes: the run's `dataset.classes`, which has to be the manifest's.

    Returns:
        Splits with the manifest's labels, class names and origin.

    Raises:
        CoopError: the file is not a manifest, disagrees with the config, or lists images that the data set lacks.
    """
    folder = common_folder(splits)
    known = {_relative(item.path, folder): item for item in splits.items()}
    if is_support(path):
        return apply_support(splits, known, path, shots=shots, classes=classes)
    manifest = load_manifest(path)
    for key, option, value in (("shots", "shots", shots), ("classes", "dataset.classes", classes)):
        if (wanted := getattr(manifest, key)) != value:
            raise CoopError(f"{path}: was written for {option}={wanted}, not {value}; set {option}={wanted}")
    _check_images(path, manifest, known, splits, folder)
    items = {part: [Item(known[row[0]].path, *row[1:]) for row in getattr(manifest, part)] for part in PARTS}
    return replace(splits, classnames=manifest.classnames, origin=manifest.origin, **items)


def _check_images(path: str, manifest: Manifest, known: dict[str, Item], splits: Splits, folder: str) -> None:
    """Whether all images are there, under the same class names, and none stands there once more."""
    listed = [row for part in PARTS for row in getattr(manifest, part)]
    written = f"It was written for dataset={manifest.dataset}"
    if missing := [image for image, _, _ in listed if image not in known]:
        raise CoopError(
            f"{path}: {len(missing)} of its images are not in this data set ({folder}): {shorten(missing)}. {written}"
        )
    for image, _, name in listed:
        if (here := known[image].classname) != name:
            raise CoopError(
                f"{path}: calls {image} {name!r}; this data set calls it {here!r}. {written}; use the same class names"
            )
    # It might be both trained and tested on; a data set may list an image twice itself.
    there = Counter(_relative(item.path, folder) for item in splits.items())
    counts = Counter(image for image, _, _ in listed)
    if repeated := [image for image, count in counts.items() if count > there[image]]:
        raise CoopError(f"{path}: images that stand there more than once: {shorten(repeated)}. {HOW}")


def load_manifest(path: str) -> Manifest:
    """Read a manifest; raises CoopError, which names the key, where it is none."""
    where = f"dataset.manifest={path}"
    manifest = read_json(Path(path).expanduser(), Manifest, where, f"Not a manifest ({FORMAT}): {HOW}")
    names = manifest.classnames
    for part in PARTS:
        for index, (image, label, name) in enumerate(getattr(manifest, part)):
            if not (label < len(names) and names[label] == name):
                row = [image, label, name]
                raise CoopError(f"{where}: {part}[{index}] is {row}, which its list of classnames does not have. {HOW}")
    return manifest


def manifest_sha256(path: str) -> str:
    """What tells manifests apart: their content, wherever they lie and however the JSON is laid out."""
    content = load_support(path) if is_support(path) else load_manifest(path)
    return hashlib.sha256(content.model_dump_json().encode()).hexdigest()
