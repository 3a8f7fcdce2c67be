"""FGVCAircraft, by the data set's own lists of variants."""

from pathlib import Path

from coop.data.readers.listing import Folders, find_folder, read_lines
from coop.data.readers.split_file import splits_from_rows
from coop.data.sampling import PARTS, Splits
from coop.errors import CoopError

UNPACK = "Unpack FGVCAircraft again"


def read_aircraft(data_root: str | None, *, folders: Folders) -> Splits:
    """Read FGVCAircraft: `variants.txt` gives names and labels, `images_variant_{train,val,test}.txt` the splits.

    `folders` may hold these lists and images/.

    Raises:
        CoopError: a list or an image is missing, or a list names a variant that `variants.txt` does not have.
    """
    root = find_folder(data_root, [f"{folder}/images" for folder in folders]).parent
    labels = {name: label for label, name in enumerate(read_lines(root / "variants.txt", UNPACK))}
    rows = {part: _rows(root / f"images_variant_{part}.txt", labels) for part in PARTS}
    return splits_from_rows(rows, root / "images", root / "images_variant_*.txt", "published")


def _rows(path: Path, labels: dict[str, int]) -> list[list]:
    rows = []
    for number, line in enumerate(read_lines(path, UNPACK), 1):
        image, _, variant = line.partition(" ")
        if variant not in labels:
            raise CoopError(f"{path}, line {number}: {variant!r} is not in variants.txt. {UNPACK}")
        rows.append([f"{image}.jpg", labels[variant], variant])
    return rows
