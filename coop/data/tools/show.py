"""A picture of a data set: some classes, their sampled shots and their names."""

import io
from collections import defaultdict
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from coop.data.images import open_image
from coop.data.sampling import Item, Splits
from coop.system.files import write_atomically

CLASSES, SHOTS = 12, 8  # at most
TILE, MARGIN, NAME_WIDTH, FONT_SIZE = 112, 4, 220, 15


def draw(splits: Splits, title: str) -> Image.Image:
    """A grid: in each row a class, its name and its first training images (test images where there are none)."""
    by_label = defaultdict(list)
    for item in splits.train or splits.test:
        by_label[item.label].append(item)
    labels = spread(sorted(by_label), CLASSES)
    columns = min(SHOTS, max(len(by_label[label]) for label in labels))
    step = TILE + MARGIN
    canvas = Image.new("RGB", (NAME_WIDTH + columns * step + MARGIN, (len(labels) + 1) * step - TILE // 2), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(FONT_SIZE)
    pen.text((MARGIN, step // 4 - FONT_SIZE // 2), title, fill="black", font=font)
    for row, label in enumerate(labels):
        top = step // 2 + row * step
        name = "\n".join(wrap(f"{label}: {splits.classnames[label]}", font))
        pen.multiline_text((MARGIN, top + MARGIN), name, fill="black", font=font)
        for column, item in enumerate(by_label[label][:columns]):
            canvas.paste(tile(item, splits), (NAME_WIDTH + column * step, top))
    return canvas


def spread(values: list[int], count: int) -> list[int]:
    """At most `count` of the values, evenly spread from the first to the last."""
    if len(values) <= count:
        return values
    return [values[round(index * (len(values) - 1) / (count - 1))] for index in range(count)]


def wrap(text: str, font: ImageFont.FreeTypeFont) -> list[str]:
    """Break a name into lines that fit beside the images; a single word that is too long is cut."""
    lines = [""]
    for word in text.replace("_", " ").split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= NAME_WIDTH - 2 * MARGIN:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def tile(item: Item, splits: Splits) -> Image.Image:
    return ImageOps.fit(open_image(item.path, splits.preprocess), (TILE, TILE), Image.Resampling.BICUBIC)


def write_picture(path: Path, splits: Splits, title: str) -> None:
    """Draw the grid into a PNG file."""
    content = io.BytesIO()
    draw(splits, title).save(content, format="PNG")
    write_atomically(path, content.getvalue())
