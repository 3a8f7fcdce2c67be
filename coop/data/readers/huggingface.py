"""A user's own Hugging Face `datasets` image data set, from local files (extra: pip install 'coop-clip[datasets]')."""

import hashlib
import json
import os
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

    The splits train, validation (val, valid) and test are taken where the data set has train and test; a data set of
    one split is split 50/20/30 per class by `seed`. Images that lie inside arrow or parquet files are unpacked once, as
    they are, into the cache folder ($COOP_CACHE, else ~/.cache/coop).

    Args:
        data_root: not used.
        path: the data set's folder.
        image_column: holds images.
        label_column: holds labels: a ClassLabel, whose names are taken, text or whole numbers.
        classnames: names other than the labels': a mapping, label to name, or a file of `label name` lines.
        seed: seed of the 50/20/30 split.

    Raises:
        CoopError: `datasets` is not installed, the folder is not a data set, or a column is missing.
    """
    if not path:
        raise CoopError("dataset=huggingface needs dataset.path=DIR, a folder that `datasets` can load")
    folder = Path(path).expanduser()
    loaded = load(folder)
    parts = {name: _read_part(folder, name, part, image_column, label_column) for name, part in loaded.items()}
    if len(parts) > 1:
        parts = name_parts(folder, parts)
    feature = next(iter(loaded.values())).features[label_column]

    def in_order(train: Images) -> list[str]:
        """The ClassLabel's names in its order; text sorted."""
        return [name for name in getattr(feature, "names", None) or sorted(train) if name in train]

    return splits_of_classes(folder, parts, seed, classnames, in_order)


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


def _check_columns(folder: Path, name: str, part, image_column: str, label_column: str) -> None:
    import datasets

    for key, column in (("image_column", image_column), ("label_column", label_column)):
        if column not in part.features:
            raise CoopError(
                f"{folder}: the split {name} has no column {column!r}; give dataset.{key}=NAME, one of "
                f"{', '.join(part.features)}"
            )
    if not isinstance(part.features[image_column], datasets.Image):
        raise CoopError(f"{folder}: the column {image_column!r} does not hold images but {part.features[image_column]}")
    kind = part.features[label_column]
    if not isinstance(kind, datasets.ClassLabel) and getattr(kind, "dtype", None) not in LABEL_TYPES:
        raise CoopError(
            f"{folder}: the column {label_column!r} holds {kind}; labels are a ClassLabel, text or whole numbers; give "
            "dataset.label_column=NAME"
        )


def _read_part(folder: Path, name: str, part, image_column: str, label_column: str) -> Images:
    _check_columns(folder, name, part, image_column, label_column)
    try:
        return images_by_class(part, image_column, label_column)
    except CoopError as error:
        raise CoopError(f"dataset.path={folder}: {error}") from None


def images_by_class(part, image_column: str, label_column: str) -> Images:
    """Image paths by class name, classes in order of first appearance, images in the data set's order."""
    feature = part.features[label_column]
    images: Images = {}
    for row, (path, label) in enumerate(zip(image_paths(part, image_column), part[label_column], strict=True)):
        known = label in range(len(feature.names)) if hasattr(feature, "names") else str(label).strip()
        if label is None or not known:
            where = f"row {row} of {part.split or 'the data set'}"
            raise CoopError(f"{where} has the {label_column} {label!r}; take it out")
        name = feature.int2str(label) if hasattr(feature, "int2str") else str(label)
        images.setdefault(name, []).append(path)
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
        if row[image_column] is None:
            raise CoopError(f"row {index} of {part.split or 'the data set'} has no {image_column}; take it out")
        paths.append(_own_file(row[image_column]) or _unpack(row[image_column], folder, index))
    write_atomically(done, json.dumps(paths).encode())
    return paths


def _fingerprint(part, image_column: str) -> str:
    """Changes with the data set's files and with what `datasets` has made of them: selected rows, tables in memory."""
    files = [file["filename"] for file in part.cache_files]
    stats = [(file, os.stat(file).st_size, os.stat(file).st_mtime_ns) for file in files]
    key = [stats, part._fingerprint, str(part.split), len(part), image_column]
    return hashlib.sha256(json.dumps(key).encode()).hexdigest()[:24]


def _own_file(image: dict) -> str | None:
    return image["path"] if image["bytes"] is None else None


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
