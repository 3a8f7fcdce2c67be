"""What a search shows: a page for the browser and a contact sheet."""

import base64
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from PIL import Image

from coop.data.contact_sheet import TILE, contact_sheet, encoded, thumbnail
from coop.data.images import open_image
from coop.data.readers.listing import printable
from coop.errors import CoopError
from coop.system.files import write_atomically, write_json

PAGE, SHEET, HITS = "page.html", "contact_sheet.png", "hits.json"
NAMED = 10  # of the photographs that are left out, on the terminal


def write_page(folder: Path, found: Mapping[str, Any]) -> Path:
    """Write hits.json, the contact sheet and, last, the page of what `coop.retrieval.ranking.search` found."""
    hits = [{**hit, "path": printable(hit["path"])} for hit in found["hits"]]
    tiles, captions = [_thumbnail(hit["path"]) for hit in found["hits"]], [caption(hit) for hit in hits]
    links = [Path(hit["path"]).absolute().as_uri() for hit in found["hits"]]
    inline = [base64.b64encode(encoded(tile, "JPEG", optimize=True)).decode() for tile in tiles]
    loader = FileSystemLoader(Path(__file__).parent)
    template = Environment(loader=loader, autoescape=True, trim_blocks=True).get_template("page.html.j2")
    page = template.render(found, hits=list(zip(links, inline, captions, hits, strict=True)), summary=summary(found))
    left_out = {printable(path): message for path, message in found["left_out"].items()}
    write_json(folder / HITS, {**found, "left_out": left_out, "hits": hits})
    write_atomically(folder / SHEET, encoded(contact_sheet(found["query"], tiles, captions), "PNG", optimize=True))
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


def _thumbnail(path: str) -> Image.Image:
    """A photograph; grey if it has gone away since it was encoded."""
    try:
        return thumbnail(open_image(path))
    except CoopError:
        return Image.new("RGB", (TILE, TILE), "lightgrey")
