"""The exact images of a run as a JSON file that travels with a paper, and runs from such a file."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict

from coop.data.readers.listing import shorten
from coop.data.readers.split_file import Row
from coop.data.sampling import PARTS, Item, Splits
from coop.data.support import apply_support, is_support, support_sha256
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
        dataset: name of the data set.
        shots: images per class.
        seed: seed of the sampling.
        classes: "all", "base" or "new".

    Raises:
        CoopError: an image whose name is not UTF-8, or a file that cannot be written.
    """
    for item in (item for part in PARTS for item in getattr(sampled, part)):
        check_utf8(item.path)
    folder = common_folder(whole)
    head = {
        "format": FORMAT,
        "dataset": dataset,
        "shots": shots,
        "seed": seed,
        "classes": classes,
        "origin": sampled.origin,
        "classnames": sampled.classnames,
    }
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    lines += [f'"{part}": [{_rows(getattr(sampled, part), folder)}]' for part in PARTS]
    write_atomically(Path(path), ("{\n" + ",\n".join(lines) + "\n}\n").encode())


def _rows(items: Iterable[Item], folder: str) -> str:
    rows = [[_relative(item.path, folder), item.label, item.classname] for item in items]
    return "\n" + ",\n".join(json.dumps(row) for row in rows) + "\n" if rows else ""


def common_folder(splits: Splits) -> str:
    """The deepest folder that holds all images."""
    paths = [item.path for part in PARTS for item in getattr(splits, part)]
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
    paths = {_relative(item.path, folder): item for part in PARTS for item in getattr(splits, part)}
    if is_support(path):
        return apply_support(splits, paths, path, shots=shots, classes=classes)
    manifest = load_manifest(path)
    for key, option, value in (("shots", "shots", shots), ("classes", "dataset.classes", classes)):
        if (wanted := getattr(manifest, key)) != value:
            raise CoopError(f"{path}: was written for {option}={wanted}, not {value}; set {option}={wanted}")
    listed = {part: [Item(*row) for row in getattr(manifest, part)] for part in PARTS}
    missing = [item.path for items in listed.values() for item in items if item.path not in paths]
    if missing:
        raise CoopError(
            f"{path}: {len(missing)} of its images are not in this data set ({folder}): {shorten(missing)}. "
            f"It was written for dataset={manifest.dataset}"
        )
    for item in (item for items in listed.values() for item in items):
        if paths[item.path].classname != item.classname:
            raise CoopError(
                f"{path}: calls {item.path} {item.classname!r}; this data set calls it {paths[item.path].classname!r}. "
                f"It was written for dataset={manifest.dataset}; use the same class names"
            )
    _check_repeated(path, manifest, splits)
    items = {part: [item._replace(path=paths[item.path].path) for item in rows] for part, rows in listed.items()}
    return replace(splits, classnames=manifest.classnames, origin=manifest.origin, **items)


def load_manifest(path: str) -> Manifest:
    """Read a manifest and check its form.

    Raises:
        CoopError: the file is missing, not JSON, or not a manifest; names the key.
    """
    where = f"dataset.manifest={path}"
    manifest = read_json(Path(path).expanduser(), Manifest, where, f"Not a manifest ({FORMAT}): {HOW}")
    names = manifest.classnames
    for part in PARTS:
        for index, (_, label, name) in enumerate(rows := getattr(manifest, part)):
            if not (label < len(names) and names[label] == name):
                row = list(rows[index])
                raise CoopError(f"{where}: {part}[{index}] is {row}, which its list of classnames does not have. {HOW}")
    return manifest


def manifest_sha256(path: str) -> str:
    """What tells manifests apart: their content, wherever they lie and however the JSON is laid out.

    Raises:
        CoopError: the file is not a manifest.
    """
    if is_support(path):
        return support_sha256(path)
    return hashlib.sha256(load_manifest(path).model_dump_json().encode()).hexdigest()


def _check_repeated(where: str, manifest: Manifest, whole: Splits) -> None:
    """Refuse an image that stands there more often than in the data set: it might be both trained and tested on."""
    folder = common_folder(whole)
    there = Counter(_relative(item.path, folder) for part in PARTS for item in getattr(whole, part))
    listed = Counter(row[0] for part in PARTS for row in getattr(manifest, part))
    if repeated := [path for path, count in listed.items() if count > there[path] > 0]:
        raise CoopError(f"{where}: images that stand there more than once: {shorten(repeated)}. {HOW}")
