"""The exact images of a run as a JSON file that travels with a paper, and runs from such a file."""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from coop.data.fewshot import Item, Splits
from coop.data.listing import shorten
from coop.errors import CoopError
from coop.files import write_atomically

FORMAT = "coop-manifest-1"
PARTS = ("train", "val", "test")
KEYS = ("format", "dataset", "shots", "seed", "classes", "origin", "classnames", *PARTS)


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
    """
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
        path: the manifest.
        shots: the run's shots, which have to be the manifest's.
        classes: the run's `dataset.classes`, which has to be the manifest's.

    Returns:
        Splits with the manifest's labels, class names and origin.

    Raises:
        CoopError: the file is not a manifest, disagrees with the config, or lists images that the data set lacks.
    """
    manifest = load_manifest(path)
    for key, value in (("shots", shots), ("classes", classes)):
        if manifest[key] != value:
            option = key if key == "shots" else "dataset.classes"
            wanted = f"{option}={manifest[key]}"
            raise CoopError(f"{path}: was written for {wanted}, not {value}; set {wanted}")
    folder = common_folder(splits)
    paths = {_relative(item.path, folder): item for part in PARTS for item in getattr(splits, part)}
    listed = {part: [Item(row[0], row[1], row[2]) for row in manifest[part]] for part in PARTS}
    missing = [item.path for items in listed.values() for item in items if item.path not in paths]
    if missing:
        raise CoopError(
            f"{path}: {len(missing)} of its images are not in this data set ({folder}): {shorten(missing)}. "
            f"It was written for dataset={manifest['dataset']}"
        )
    for item in (item for items in listed.values() for item in items):
        if paths[item.path].classname != item.classname:
            raise CoopError(
                f"{path}: calls {item.path} {item.classname!r}; this data set calls it {paths[item.path].classname!r}. "
                f"It was written for dataset={manifest['dataset']}; use the same class names"
            )
    items = {part: [item._replace(path=paths[item.path].path) for item in rows] for part, rows in listed.items()}
    return replace(splits, classnames=manifest["classnames"], origin=manifest["origin"], **items)


def load_manifest(path: str) -> dict:
    """Read a manifest and check its form.

    Raises:
        CoopError: the file is missing, not JSON, or not a manifest.
    """
    where = f"dataset.manifest={path}"
    try:
        manifest = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CoopError(f"{where}: can't be read as JSON: {error}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT or not set(KEYS) <= manifest.keys():
        raise CoopError(f"{where}: not a manifest ({FORMAT}). Write one with: python -m coop.data export NAME")
    names = manifest["classnames"]
    for part in PARTS:
        for row in manifest[part]:
            if not (isinstance(row, list) and [type(value) for value in row] == [str, int, str]):
                raise CoopError(f"{where}: {part} holds {row!r}; expected [image path, label, class name]")
            if not (0 <= row[1] < len(names) and names[row[1]] == row[2]):
                raise CoopError(f"{where}: {part} holds {row!r}, which its list of class names does not")
    return manifest


def manifest_sha256(path: str) -> str:
    """What tells manifests apart: their content, wherever they lie and however the JSON is laid out.

    Raises:
        CoopError: the file is not a manifest.
    """
    return hashlib.sha256(json.dumps(load_manifest(path), sort_keys=True).encode()).hexdigest()
