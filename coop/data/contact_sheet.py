"""A grid of images with their captions."""

import io
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont, ImageOps

TILE, MARGIN, CAPTION, FONT_SIZE, COLUMNS = 160, 6, 36, 13, 5


def thumbnail(image: Image.Image) -> Image.Image:
    """An image within a square of TILE."""
    return ImageOps.contain(image, (TILE, TILE))


def contact_sheet(
    title: str, tiles: Sequence[Image.Image | None], captions: Sequence[str], columns: int = COLUMNS
) -> Image.Image:
    """A grid of thumbnails, row by row, each above its caption; None leaves a place empty."""
    width, height = TILE + MARGIN, TILE + CAPTION
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (max(columns, COLUMNS) * width + MARGIN, rows * height + CAPTION), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT_SIZE)
    pen.text((MARGIN, MARGIN), title, fill="black", font=font)
    for index, (tile, text) in enumerate(zip(tiles, captions, strict=True)):
        left, top = MARGIN + index % columns * width, CAPTION + index // columns * height
        if tile:
            sheet.paste(tile, (left + (TILE - tile.width) // 2, top + (TILE - tile.height) // 2))
        pen.text((left, top + TILE + MARGIN // 2), text, fill="black", font=font)
    return sheet


def encoded(image: Image.Image, kind: str, **options: int) -> bytes:
    """An image as the content of a file, "PNG" or "JPEG"."""
    content = io.BytesIO()
    image.save(content, format=kind, **options)
    return content.getvalue()
