"""python -m coop.search PHOTOS WORDS...: photographs that fit words, another photograph, or a class of a run."""

from coop.cli.options import run_command

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
    run_command("search", USAGE)

import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from coop.cli.options import parse
from coop.data.image_files import find_images
from coop.data.readers.listing import printable
from coop.errors import CoopError
from coop.retrieval.options import SearchOptions
from coop.retrieval.page import caption, is_contact_sheet, name_left_out, summary, write_page
from coop.runs.hub import local_folder


def main(words: list[str]) -> int:
    """Encode what is new, search, write and show; returns the exit code."""
    plain, options = parse(words, SearchOptions)
    check_query(plain, options)
    photos, *queries = plain
    paths, unreachable = find_photographs(photos)
    if options.run:
        local_folder(options.run)  # a folder that is not a run's shows up before torch is imported
    from coop.retrieval.ranking import search

    found = search(paths, queries, options)
    found["left_out"] |= unreachable
    page = write_page(Path(options.out).expanduser(), found)
    show(found, page, options.json)
    return 1 if found["left_out"] else 0


def check_query(plain: list[str], options: SearchOptions) -> None:
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
    """Paths of photographs, and messages about folders that cannot be read."""
    found = list(find_images([photos]))
    unreachable = {path: error for path, error in found if error is not None}
    paths = [path for path, error in found if error is None and not is_contact_sheet(path)]
    if not paths:
        raise CoopError(next(iter(unreachable.values()), f"{photos}: holds nothing but the results of searches"))
    return paths, unreachable


def show(found: dict[str, Any], page: Path, as_json: bool) -> None:
    """The hits, what was left out, and where the page lies."""
    hits = found["hits"]
    if as_json:
        print(json.dumps([{**hit, "path": printable(hit["path"])} for hit in hits], indent=2, ensure_ascii=False))
    else:
        table = Table("score")
        table.add_column("photograph", overflow="fold")
        for hit in hits:
            table.add_row(caption(hit), printable(hit["path"]))
        Console(markup=False, emoji=False, highlight=False).print(table)
    name_left_out(found["left_out"], str(page))
    print(f"{summary(found)}\npage     {page}", file=sys.stderr if as_json else sys.stdout)
