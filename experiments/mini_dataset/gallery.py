"""Search and prediction on bundled photographs, in one picture: python experiments/mini_dataset/gallery.py RUN [OUT].

RUN is the folder of a finished run on the bundled photographs. Above, the first hits for words that name no class;
below, the first test photograph of every fifth class, so that nobody has chosen them, with the most probable classes.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
from PIL import ImageOps

import coop
from coop.data.image_files import find_images
from coop.data.images import open_image
from coop.data.readers.mini import read_mini
from coop.retrieval.options import SearchOptions
from coop.retrieval.ranking import search

IMAGES = Path(coop.__file__).parent / "assets" / "mini" / "images"
WORDS, COLUMNS, TOP, EVERY = "tree in a pot", 5, 3, 5
SIDE, RIGHT, WRONG = 224, "#a8cbf0", "#d0d0d0"


def show(panel, path: str) -> None:
    """A photograph's middle, as CLIP sees it, without axes."""
    panel.imshow(ImageOps.fit(open_image(path), (SIDE, SIDE)))
    panel.axis("off")


def show_probabilities(panel, classes: list[dict], truth: str) -> None:
    """A bar for each of the most probable classes, colored where it is right."""
    names, values = [c["classname"] for c in classes], [c["probability"] for c in classes]
    panel.barh(range(TOP), values, color=[RIGHT if name == truth else WRONG for name in names], height=0.8)
    for row, (name, value) in enumerate(zip(names, values, strict=True)):
        panel.text(0.02, row, f"{name}  {100 * value:.1f} %", va="center", fontsize=9)
    panel.set(xlim=(0, 1), ylim=(TOP - 0.5, -0.5))
    panel.axis("off")


def main(run: str, out: str = "gallery.jpg") -> None:
    paths = [path for path, _ in find_images([str(IMAGES)])]
    hits = search(paths, [WORDS], SearchOptions(run=run, top=COLUMNS))["hits"]
    first = {item.classname: item for item in reversed(read_mini(None).test)}
    items = [first[name] for name in sorted(first)[::EVERY]]
    predictions = coop.load_run(run).predict([item.path for item in items], top=TOP)
    figure = plt.figure(figsize=(11, 6), layout="constrained")
    found, seen = figure.subfigures(2, 1, height_ratios=[3, 4])
    found.suptitle(f'python -m coop.search PHOTOS "{WORDS}" run=RUN', family="monospace", fontsize=11)
    for panel, hit in zip(found.subplots(1, COLUMNS), hits, strict=True):
        show(panel, hit["path"])
        panel.set_title(f"similarity {hit['score']:.3f}", fontsize=9)
    seen.suptitle("python -m coop.predict run=RUN PHOTOS", family="monospace", fontsize=11)
    photographs, bars = seen.subplots(2, COLUMNS, height_ratios=[3, 1])
    for photograph, bar, item, prediction in zip(photographs, bars, items, predictions, strict=True):
        show(photograph, item.path)
        show_probabilities(bar, prediction["classes"], item.classname.replace("_", " "))
    figure.savefig(out, dpi=100, pil_kwargs={"quality": 85})


if __name__ == "__main__":
    main(*sys.argv[1:])
