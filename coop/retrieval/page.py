"""What a search shows: a page for the browser and a contact sheet."""

import base64
import io
import os
import sys
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
NAMED = 10  # of the photographs that are left out, on the terminal


def write_page(folder: Path, found: Mapping[str, Any]) -> Path:
    """Write hits.json, the contact sheet and, last, the page.

    Args:
        folder: where; made if it is not there.
        found: what `coop.retrieval.ranking.search` returns.

    Returns:
        The page.
    """
    hits = [{**hit, "path": printable(hit["path"])} for hit in found["hits"]]
    tiles, captions = [thumbnail(hit["path"]) for hit in found["hits"]], [caption(hit) for hit in hits]
    links = [Path(hit["path"]).absolute().as_uri() for hit in found["hits"]]
    inline = [base64.b64encode(_encoded(tile, "JPEG")).decode() for tile in tiles]
    loader = FileSystemLoader(Path(__file__).parent)
    template = Environment(loader=loader, autoescape=True, trim_blocks=True).get_template("page.html.j2")
    page = template.render(found, hits=list(zip(links, inline, captions, hits, strict=True)), summary=summary(found))
    left_out = {printable(path): message for path, message in found["left_out"].items()}
    write_json(folder / HITS, {**found, "left_out": left_out, "hits": hits})
    write_atomically(folder / SHEET, _encoded(contact_sheet(found["query"], tiles, captions), "PNG"))
    write_atomically(folder / PAGE, page.encode("utf-8", "backslashreplace"))
    return folder / PAGE


def is_contact_sheet(path: str) -> bool:
    """Whether an image is what an earlier search has written, perhaps into the folder of photographs."""
    folder, name = os.path.split(path)
    return name == SHEET and os.path.isfile(os.path.join(folder, HITS))


def summary(found: Mapping[str, Any]) -> str:
    """How many photographs there are, are new, and are left out; and what the scores are."""
    left_out = f", {len(found['left_out']):,} left out" if found["left_out"] else ""
    counted = f"{found['photographs']:,} photographs, {found['new']:,} of them new{left_out}"
    return f"{counted}. Backbone: {found['backbone']}; score: {found['score']}."


def name_left_out(left_out: Mapping[str, str], rest: str) -> None:
    """Name the first photographs that could not be read on stderr, and say where the rest stands."""
    for message in list(left_out.values())[:NAMED]:
        print(f"error: {message}", file=sys.stderr)
    if (more := len(left_out) - NAMED) > 0:
        print(f"error: and {more} more could not be read: {rest}", file=sys.stderr)


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


def _encoded(image: Image.Image, kind: str) -> bytes:
    content = io.BytesIO()
    image.save(content, format=kind, optimize=True)
    return content.getvalue()
