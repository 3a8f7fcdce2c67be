"""What a search shows: a page for the browser and a contact sheet."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from PIL import Image, ImageDraw, ImageFont, ImageOps

from coop.data.images import open_image
from coop.data.readers.listing import printable
from coop.errors import CoopError
from coop.system.files import write_atomically, write_json

PAGE, SHEET, HITS = "page.html", "contact_sheet.png", "hits.json"
TILE, MARGIN, CAPTION, FONT_SIZE, COLUMNS = 160, 6, 36, 13, 5


def write_page(folder: Path, found: Mapping[str, Any]) -> Path:
    """Write hits.json, the contact sheet and, last, the page.

    Args:
        folder: where; made if it is not there.
        found: the texts "query", "run", "backbone", "summary" and "score" (what it is); "left_out", messages by path;
            and "hits", each with its "path", "score" and, of a run, what it "predicted" ("classname", "probability").

    Returns:
        The page.
    """
    hits = found["hits"]
    tiles, captions = [thumbnail(hit["path"]) for hit in hits], [caption(hit) for hit in hits]
    shown = [
        {"path": printable(hit["path"]), "link": Path(hit["path"]).absolute().as_uri(), "tile": tile, "caption": text}
        for hit, tile, text in zip(hits, map(_jpeg, tiles), captions, strict=True)
    ]
    loader = FileSystemLoader(Path(__file__).parent)
    template = Environment(loader=loader, autoescape=True, trim_blocks=True).get_template("page.html.j2")
    printed = {
        **found,
        "left_out": {printable(path): message for path, message in found["left_out"].items()},
        "hits": [{**hit, "path": printable(hit["path"])} for hit in hits],
    }
    write_json(folder / HITS, printed)
    write_atomically(folder / SHEET, _png(contact_sheet(found["query"], tiles, captions)))
    write_atomically(folder / PAGE, template.render(printed | {"hits": shown}).encode("utf-8", "backslashreplace"))
    return folder / PAGE


def caption(hit: Mapping[str, Any]) -> str:
    """The score, and what a run predicts: "0.273  heron 98 %"."""
    predicted = hit.get("predicted")
    said = f"  {predicted['classname']} {100 * predicted['probability']:.0f} %" if predicted else ""
    return f"{hit['score']:.3f}{said}"


def thumbnail(path: str) -> Image.Image:
    """A photograph within a square of TILE; grey if it has gone away since it was encoded."""
    try:
        return ImageOps.contain(open_image(path), (TILE, TILE))
    except CoopError:
        return Image.new("RGB", (TILE, TILE), "lightgrey")


def contact_sheet(title: str, tiles: Sequence[Image.Image], captions: Sequence[str]) -> Image.Image:
    """A grid of the photographs, the best first, each above its caption."""
    columns = max(1, min(COLUMNS, len(tiles)))
    width, height = TILE + MARGIN, TILE + CAPTION
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (COLUMNS * width + MARGIN, rows * height + CAPTION), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT_SIZE)
    pen.text((MARGIN, MARGIN), title, fill="black", font=font)
    for index, (tile, text) in enumerate(zip(tiles, captions, strict=True)):
        left, top = MARGIN + index % columns * width, CAPTION + index // columns * height
        sheet.paste(tile, (left + (TILE - tile.width) // 2, top + (TILE - tile.height) // 2))
        pen.text((left, top + TILE + MARGIN // 2), text, fill="black", font=font)
    return sheet


def _png(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, format="PNG", optimize=True)
    return content.getvalue()


def _jpeg(image: Image.Image) -> str:
    content = io.BytesIO()
    image.save(content, format="JPEG", quality=85)
    return base64.b64encode(content.getvalue()).decode()
