"""Facts about the paper's fifteen data sets (assets/datasets.csv): published counts, and how to get the images."""

import csv
from pathlib import Path
from typing import NamedTuple

FILE = Path(__file__).parents[2] / "assets" / "datasets.csv"


class Published(NamedTuple):
    """What a complete copy holds, and where it comes from."""

    counts: tuple[int, ...]  # numbers of train, val and test images in the paper's split
    classes: int
    torchvision: str | None  # the class of torchvision that downloads it
    how: str  # to get it by hand


def _read(row: dict[str, str]) -> Published:
    counts = tuple(int(row[part]) for part in ("train", "val", "test"))
    return Published(counts, int(row["classes"]), row["torchvision"] or None, row["how"])


with open(FILE, newline="", encoding="utf-8") as _file:
    PUBLISHED = {row["name"]: _read(row) for row in csv.DictReader(_file)}
