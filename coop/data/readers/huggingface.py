"""A user's own Hugging Face `datasets` image data set, from local files (extra: pip install 'coop-clip[datasets]')."""

import hashlib
import json
import os
from functools import partial
from pathlib import Path

from coop.data.feature_cache import default_cache_dir
from coop.data.readers.folder import PART_OF, Images, Names, splits_of_classes
from coop.data.readers.listing import EXTENSIONS, log, shorten
from coop.data.sampling import Splits
from coop.errors import CoopError
from coop.system.files import write_atomically

LABEL_TYPES = ("string", "large_string", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)))
SAVED = ("dataset_dict.json", "state.json")  # what `save_to_disk` writes


def read_huggingface(
    data_root: str | None,
    *,
    path: str | None = None,
    image_column: str = "image",
    label_column: str = "label",
    classnames: Names = None,
    seed: int = 1,
) -> Splits:
    """Read an image data set of Hugging Face's `datasets`: what `save_to_disk` wrote, or a folder of parquet files.

    The splits train, validation (val, valid) and test are taken where the data set has train and test, or its only one.
    Labels are a ClassLabel, whose names are taken, text or whole numbers. Images that lie inside arrow or parquet files
    are unpacked once, as they are, into the cache folder ($COOP_CACHE, else ~/.cache/coop).

    Raises:
        CoopError: `datasets` is not installed, the folder is not a data set, or a column is missing.
    """
    if not path:
        raise CoopError("dataset=huggingface needs dataset.path=DIR, a folder that `datasets` can load")
    folder = Path(path).expanduser()
    loaded = load(folder)
    try:
        parts = {name: images_by_class(part, image_column, label_column) for name, part in loaded.items()}
    except CoopError as error:
        raise CoopError(f"dataset.path={folder}: {error}") from None
    if len(parts) > 1:
        parts = name_parts(folder, parts)
    feature = next(iter(loaded.values())).features[label_column]
    return splits_of_classes(folder, parts, seed, classnames, partial(_in_order, feature))


def _in_order(feature, train: Images) -> list[str]:
    """The ClassLabel's names in its order; text sorted."""
    return [name for name in getattr(feature, "names", None) or sorted(train) if name in train]


def load(folder: Path) -> dict:
    """The data set's splits by name."""
    try:
        import datasets
    except ImportError:
        raise CoopError("dataset=huggingface needs the package `datasets`: pip install 'coop-clip[datasets]'") from None
    if int(datasets.__version__.partition(".")[0]) < 4:
        raise CoopError(
            f"dataset=huggingface: `datasets` {datasets.__version__} may run scripts that lie in a data set's folder; "
            "pip install 'datasets>=4'"
        )
    if not folder.is_dir():
        raise CoopError(f"dataset.path={folder}: this folder does not exist")
    try:
        saved = any((folder / name).is_file() for name in SAVED)
        loaded = datasets.load_from_disk(str(folder)) if saved else datasets.load_dataset(str(folder))
    except Exception as error:  # pyarrow's, fsspec's and datasets' own errors have no common class
        raise CoopError(f"dataset.path={folder}: `datasets` can't load this folder: {error}") from error
    return dict(loaded) if isinstance(loaded, dict) else {"train": loaded}


def _check_columns(part, image_column: str, label_column: str) -> None:
    import datasets

    for key, column in (("image_column", image_column), ("label_column", label_column)):
        if column not in part.features:
            there = ", ".join(part.features)
            raise CoopError(f"{_name(part)} has no column {column!r}; give dataset.{key}=NAME, one of {there}")
    if not isinstance(part.features[image_column], datasets.Image):
        raise CoopError(f"the column {image_column!r} does not hold images but {part.features[image_column]}")
    kind = part.features[label_column]
    if not isinstance(kind, datasets.ClassLabel) and getattr(kind, "dtype", None) not in LABEL_TYPES:
        raise CoopError(
            f"the column {label_column!r} holds {kind}; labels are a ClassLabel, text or whole numbers; give "
            "dataset.label_column=NAME"
        )


def _name(part) -> str:
    return f"the split {part.split}" if part.split else "the data set"


def images_by_class(part, image_column: str, label_column: str) -> Images:
    """Image paths by class name, classes in order of first appearance, images in the data set's order."""
    _check_columns(part, image_column, label_column)
    names = getattr(part.features[label_column], "names", None)
    images: Images = {}
    for row, (path, label) in enumerate(zip(image_paths(part, image_column), part[label_column], strict=True)):
        known = label in range(len(names)) if names else label is not None and str(label).strip()
        if not known:
            raise CoopError(f"row {row} of {_name(part)} has the {label_column} {label!r}; take it out")
        images.setdefault(names[label] if names else str(label), []).append(path)
    return images


def image_paths(part, image_column: str) -> list[str]:
    """Paths of all images; those without a file of their own are unpacked into the cache folder, once."""
    import datasets

    folder = default_cache_dir() / "huggingface" / _fingerprint(part, image_column)
    done = folder / "paths.json"
    if done.is_file():
        return json.loads(done.read_text(encoding="utf-8"))
    paths = []
    encoded = part.select_columns([image_column]).cast_column(image_column, datasets.Image(decode=False))
    for index, row in enumerate(encoded):
        image = row[image_column]
        if image is None:
            raise CoopError(f"row {index} of {_name(part)} has no {image_column}; take it out")
        paths.append(image["path"] if image["bytes"] is None else _unpack(image, folder, index))
    write_atomically(done, json.dumps(paths).encode())
    return paths


def _fingerprint(part, image_column: str) -> str:
    """Changes with the data set's files and with what `datasets` has made of them: selected rows, tables in memory."""
    files = [file["filename"] for file in part.cache_files]
    stats = [(file, os.stat(file).st_size, os.stat(file).st_mtime_ns) for file in files]
    key = [stats, part._fingerprint, str(part.split), len(part), image_column]
    return hashlib.sha256(json.dumps(key).encode()).hexdigest()[:24]


def _unpack(image: dict, folder: Path, index: int) -> str:
    suffix = Path(image["path"] or "").suffix.lower()
    target = folder / f"{index:07d}{suffix if suffix in EXTENSIONS else '.image'}"
    write_atomically(target, image["bytes"])
    return str(target)


def name_parts(folder: Path, parts: dict[str, Images]) -> dict[str, Images]:
    """The splits as train, val and test; others are left out with a warning."""
    named = {PART_OF[name]: images for name, images in parts.items() if name in PART_OF}
    if not {"train", "test"} <= named.keys():
        raise CoopError(f"{folder}: has the splits {', '.join(parts)}; expected train and test, or a single split")
    if extra := sorted(set(parts) - set(PART_OF)):
        log.warning("%s: these splits are left out: %s", folder, shorten(extra))
    return named
