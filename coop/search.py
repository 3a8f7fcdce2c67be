"""python -m coop.search PHOTOS WORDS...: photographs that fit words, another photograph, or a class of a run."""

from coop.cli.options import run

USAGE = """python -m coop.search PHOTOS WORDS... [like=IMAGE] [top=20] [out=DIR] [json=true]
         [backbone=NAME pretrained=TAG_OR_FILE | run=RUN_DIR [classname=NAME]]

  PHOTOS           a folder (with all that is beneath it), or a pattern such as 'photos/*.jpg'
  WORDS            "a red car on snow"; of several the mean of their features is looked for
  like=IMAGE       photographs that look like this one; beside WORDS it counts as one of them
  run=RUN_DIR      WORDS behind the context that this run learned (a unified one), with its backbone and predictions
  classname=NAME   instead of WORDS, a class of the run: its most probable photographs
  backbone=NAME    of conf/backbone or of open_clip, with pretrained= its weights; without run= and this: tiny
  top=N            how many photographs
  out=DIR          where the page, the contact sheet and hits.json go (without it: search_results)
  json=true        print paths and scores as JSON instead of a table
  accelerator=auto num_workers=2 --config-dir DIR    as in coop.train and coop.predict

Features are kept (python -m coop.cache shows them): only new and changed photographs are encoded, and what was encoded
before an interruption stays. Photographs that cannot be read are named and left out, and the exit code is 1."""

if __name__ == "__main__":  # before the imports below: --help and most mistakes need no torch
    run("search", USAGE)

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console
from rich.table import Table
from torch import Tensor

from coop.cli.options import parse
from coop.data.readers.listing import printable
from coop.errors import CoopError
from coop.predict import find_images
from coop.retrieval.encoding import Encoder, EncoderOptions, Photographs, encode_photographs, load_encoder
from coop.retrieval.page import caption, write_page
from coop.retrieval.ranking import best, label_of, log_probabilities, query_feature
from coop.validation import between

NAMED = 10  # of the photographs that are left out, on the terminal; all are on the page


@dataclass
class Options(EncoderOptions):
    """What the command line may set; USAGE says what each means."""

    like: str | None = None
    classname: str | None = None
    top: Annotated[int, between(1, 1000)] = 20
    out: str = "search_results"
    json: bool = False


def main(words: list[str]) -> int:
    """Encode what is new, search, write and show; returns the exit code."""
    plain, options = parse(words, Options)
    check_query(plain, options)
    photos, *queries = plain
    paths, unreachable = find_photographs(photos)
    encoder = load_encoder(options)
    if options.classname:
        query: Tensor | int = label_of(encoder.method, options.classname)
    else:
        query = query_feature(encoder, queries, options.like)
    photographs = encode_photographs(encoder.photographs, paths)
    photographs.left_out.update(unreachable)
    hits = rank(encoder, photographs, query, options.top)
    looked_for = " + ".join([*queries, *filter(None, [options.classname, options.like])])
    about = {"query": looked_for, "run": options.run, "backbone": encoder.clip.name, "summary": counted(photographs)}
    about |= {"score": "probability" if options.classname else "cosine similarity", "hits": hits}
    page = write_page(Path(options.out).expanduser(), about | {"left_out": photographs.left_out})
    show(options, photographs, hits, page)
    return 1 if photographs.left_out else 0


def check_query(plain: list[str], options: Options) -> None:
    """Raises CoopError where nothing is looked for, or two things that do not go together."""
    if not plain:
        raise CoopError('give photographs and words: python -m coop.search PHOTOS "a red car on snow"')
    if options.classname and options.run is None:
        raise CoopError(f"classname={options.classname}: a class of a run; add run=RUN_DIR, or give it as words")
    if options.classname and (len(plain) > 1 or options.like):
        raise CoopError(f"classname={options.classname} beside words or like=: give one of them")
    if not all(word.strip() for word in plain) or not (len(plain) > 1 or options.like or options.classname):
        raise CoopError(f'{plain[0]}: look for what? Give words ("a red car on snow"), like=IMAGE, or run= classname=')


def find_photographs(photos: str) -> tuple[list[str], dict[str, str]]:
    """Paths of photographs, and messages about folders that cannot be read.

    Raises:
        CoopError: there is no photograph.
    """
    found = list(find_images([photos]))
    paths, unreachable = [path for path, error in found if error is None], {p: e for p, e in found if e is not None}
    if not paths:
        raise CoopError(next(iter(unreachable.values())))
    return paths, unreachable


def rank(encoder: Encoder, photographs: Photographs, query: Tensor | int, top: int) -> list[dict[str, Any]]:
    """The photographs that come first: path, score and, of a run, the most probable class.

    Raises:
        CoopError: none of the photographs can be read.
    """
    if not photographs.paths:
        message = next(iter(photographs.left_out.values()))
        raise CoopError(f"none of the {len(photographs.left_out)} photographs can be read: {message}")
    scores, rows = best(encoder, photographs.features, query, top)
    hits = [{"path": photographs.paths[r], "score": s} for r, s in zip(rows.tolist(), scores.tolist(), strict=True)]
    if encoder.method is not None:
        probable, labels = log_probabilities(encoder.method, photographs.features[rows]).exp().max(dim=1)
        for hit, p, k in zip(hits, probable.tolist(), labels.tolist(), strict=True):
            hit["predicted"] = {"classname": encoder.method.classnames[k], "probability": p}
    return hits


def counted(photographs: Photographs) -> str:
    """How many photographs there are, are new, and are left out."""
    left_out = f", {len(photographs.left_out):,} left out" if photographs.left_out else ""
    return f"{len(photographs.paths):,} photographs, {photographs.new:,} of them new{left_out}."


def show(options: Options, photographs: Photographs, hits: list[dict[str, Any]], page: Path) -> None:
    """The hits, what was left out, and where the page lies."""
    if options.json:
        print(json.dumps([{**hit, "path": printable(hit["path"])} for hit in hits], indent=2, ensure_ascii=False))
    else:
        table = Table("", "score", "photograph")
        for number, hit in enumerate(hits, 1):
            table.add_row(str(number), caption(hit), printable(hit["path"]))
        Console(markup=False, emoji=False, highlight=False).print(table)
    for message in list(photographs.left_out.values())[:NAMED]:
        print(f"error: {message}", file=sys.stderr)
    if (more := len(photographs.left_out) - NAMED) > 0:
        print(f"error: and {more} more could not be read: {page}", file=sys.stderr)
    print(f"{counted(photographs)}\npage     {page}", file=sys.stderr if options.json else sys.stdout)
