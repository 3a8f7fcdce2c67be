"""A picture of a data set: some classes, their sampled shots and their names."""

from collections import defaultdict
from pathlib import Path

from coop.data.contact_sheet import contact_sheet, encoded, thumbnail
from coop.data.images import open_image
from coop.data.sampling import Splits
from coop.system.files import write_atomically

CLASSES, SHOTS = 12, 8  # at most


def write_picture(path: Path, splits: Splits, title: str) -> None:
    """Draw a PNG: in each row a class, its first training images (test images where there are none) and its name."""
    by_label = defaultdict(list)
    for item in splits.train or splits.test:
        by_label[item.label].append(item)
    labels = spread(sorted(by_label), CLASSES)
    columns = min(SHOTS, max(len(by_label[label]) for label in labels))
    tiles, captions = [], []
    for label in labels:
        row = [thumbnail(open_image(item.path, splits.preprocess)) for item in by_label[label][:columns]]
        tiles += row + [None] * (columns - len(row))
        captions += [f"{label}: {splits.classnames[label].replace('_', ' ')}"] + [""] * (columns - 1)
    write_atomically(path, encoded(contact_sheet(title, tiles, captions, columns), "PNG"))


def spread(values: list[int], count: int) -> list[int]:
    """At most `count` of the values, evenly spread from the first to the last."""
    if len(values) <= count:
        return values
    return [values[round(index * (len(values) - 1) / (count - 1))] for index in range(count)]
