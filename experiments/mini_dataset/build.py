"""Make the bundled mini data set from Caltech101: python experiments/mini_dataset/build.py DATA_ROOT.

The rule, fixed before any result was looked at:
- of the published split's 100 classes, leave out "face" (photographs of identifiable people), keep those with at least
  16 training, 4 validation and 20 test photographs, and take the 25 with the most photographs (ties: smaller label);
- of each class, take the first 16, 4 and 20 photographs of its lists in the published split, which is in random order;
- resize to a short side of 160 pixels (bicubic, never enlarged), and save as JPEG of quality 60.
"""

import json
import os
import sys
from collections import Counter, defaultdict
from pathlib import Path

from PIL import Image

from coop.data.images import open_image
from coop.data.readers.mini import MINI
from coop.data.readers.split_file import read_split_file
from coop.data.sampling import Item, Splits

COUNTS = {"train": 16, "val": 4, "test": 20}
NUM_CLASSES = 25
LEFT_OUT = ("face",)
SHORT_SIDE = 160
QUALITY = 60


def choose_classes(splits: Splits) -> list[int]:
    """The labels that the rule above picks, sorted."""
    counts = {name: Counter(item.label for item in getattr(splits, name)) for name in COUNTS}
    total = sum(counts.values(), Counter())
    enough = [label for label in total if all(counts[name][label] >= need for name, need in COUNTS.items())]
    enough = [label for label in enough if splits.classnames[label] not in LEFT_OUT]
    return sorted(sorted(enough, key=lambda label: (-total[label], label))[:NUM_CLASSES])


def first_of_each(items: list[Item], labels: list[int], count: int) -> list[Item]:
    """The first `count` items of each of the labels, grouped by label, relabeled from 0."""
    by_label = defaultdict(list)
    for item in items:
        by_label[item.label].append(item)
    return [item._replace(label=new) for new, label in enumerate(labels) for item in by_label[label][:count]]


def save_small(source: str, target: Path) -> None:
    """Resize one photograph and write it; pixels alone, so that the same input gives the same bytes."""
    image = open_image(source)
    scale = SHORT_SIDE / min(image.size)
    if scale < 1:
        image = image.resize([round(side * scale) for side in image.size], Image.Resampling.BICUBIC)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_suffix(".part")
    image.save(temporary, format="JPEG", quality=QUALITY, optimize=True)
    os.replace(temporary, target)


def main(data_root: str) -> None:
    splits = read_split_file(
        data_root, image_folders=["caltech-101/101_ObjectCategories"], split_file="split_zhou_Caltech101.json"
    )
    labels = choose_classes(splits)
    rows = {}
    for name, count in COUNTS.items():
        rows[name] = []
        for item in first_of_each(getattr(splits, name), labels, count):
            relative = "/".join(Path(item.path).parts[-2:])
            save_small(item.path, MINI / "images" / relative)
            rows[name].append([relative, item.label, item.classname])
    temporary = MINI / "split_mini.json.part"
    lines = [f'"{name}": [\n' + ",\n".join(json.dumps(row) for row in part) + "\n]" for name, part in rows.items()]
    temporary.write_text("{" + ",\n".join(lines) + "}\n", encoding="utf-8")
    os.replace(temporary, MINI / "split_mini.json")
    size = sum(file.stat().st_size for file in MINI.rglob("*") if file.is_file())
    print(f"{len(labels)} classes, {sum(map(len, rows.values()))} photographs, {size / 1e6:.2f} MB in {MINI}")
    print(", ".join(splits.classnames[label] for label in labels))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
