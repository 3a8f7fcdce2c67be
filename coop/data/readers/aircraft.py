"""FGVCAircraft, by the data set's own lists of variants."""

from pathlib import Path

from coop.data.readers.listing import Folders, find_folder
from coop.data.readers.split_file import Rows, splits_from_rows
from coop.data.sampling import Splits
from coop.errors import CoopError

PARTS = {"train": "images_variant_train.txt", "val": "images_variant_val.txt", "test": "images_variant_test.txt"}


def read_aircraft(data_root: str | None, *, folders: Folders) -> Splits:
    """Read FGVCAircraft: `variants.txt` gives names and labels, `images_variant_{train,val,test}.txt` the splits.

    Args:
        data_root: the folder that holds the data sets.
        folders: folders, relative to `data_root`, that may hold the lists and images/: CoOp's layout, torchvision's.

    Raises:
        CoopError: a list or an image is missing, or a list names a variant that `variants.txt` does not have.
    """
    root = find_folder(data_root, [f"{folder}/images" for folder in folders]).parent
    variants = _read_lines(root / "variants.txt")
    labels = {name: label for label, name in enumerate(variants)}
    rows: Rows = {part: _rows(root / file, labels) for part, file in PARTS.items()}
    return splits_from_rows(rows, root / "images", root / "images_variant_*.txt", "published")


def _rows(path: Path, labels: dict[str, int]) -> list[list]:
    rows = []
    for number, line in enumerate(_read_lines(path), 1):
        image, _, variant = line.partition(" ")
        if variant not in labels:
            raise CoopError(f"{path}, line {number}: {variant!r} is not in variants.txt. Unpack the data set again")
        rows.append([f"{image}.jpg", labels[variant], variant])
    return rows


def _read_lines(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except FileNotFoundError:
        raise CoopError(f"{path}: this list of the data set is missing. Unpack FGVCAircraft again") from None
    except (OSError, UnicodeDecodeError) as error:
        raise CoopError(f"{path}: can't read this list ({error}). Unpack FGVCAircraft again") from None
    if not lines:
        raise CoopError(f"{path}: this list is empty. Unpack FGVCAircraft again")
    return lines
