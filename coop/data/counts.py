"""Support sets of unequal classes: a number of shots for each class ("Few-Shot, Now for Real", arXiv 2506.17500)."""

import csv
import difflib
import io
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig

from coop.data.readers.listing import shorten
from coop.errors import CoopError

FORM = "a CSV file with the columns class,count, or a JSON file: a list of numbers, or {class: number}"


def spread_shots(cfg: DictConfig) -> None:
    """Where `shots` is a list or a file, move it to `dataset.counts`; `shots` becomes the mean, rounded.

    Rules that go by the number of shots (epochs, steps) then go by this mean.
    """
    if isinstance(cfg.shots, ListConfig):
        counts = numbers = list(cfg.shots)
    elif isinstance(cfg.shots, str) and Path(cfg.shots).suffix.lower() in (".csv", ".json"):
        counts = read_counts(Path(cfg.shots).expanduser())
        numbers = [of[1] if isinstance(of, list) and len(of) == 2 else of for of in counts]
    else:
        return
    if wrong := [number for number in numbers if type(number) is not int or number < 0]:
        raise CoopError(f"shots={cfg.shots}: {wrong[0]!r} is not a number of images: 0 or more of each class")
    if not any(numbers):
        raise CoopError(f"shots={cfg.shots}: not one image; give some classes 1 or more")
    cfg.dataset.counts, cfg.shots = counts, max(1, round(sum(numbers) / len(numbers)))


def read_counts(path: Path) -> list[Any]:
    """Numbers in the order of the classes, or pairs [class name, number]."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        content = json.loads(text) if path.suffix.lower() == ".json" else _rows(text)
    except OSError as error:
        raise CoopError(f"shots={path}: cannot be read ({error.strerror}); give {FORM}") from None
    except (ValueError, RecursionError) as error:
        raise CoopError(f"shots={path}: not readable ({error}); give {FORM}") from None
    if isinstance(content, dict):
        content = [[name, count] for name, count in content.items()]
    if not isinstance(content, list) or not content:
        raise CoopError(f"shots={path}: holds no counts; give {FORM}")
    return content


def _rows(text: str) -> list[list[Any]]:
    rows = list(csv.DictReader(io.StringIO(text)))
    if not rows or not {"class", "count"} <= rows[0].keys():
        raise ValueError("its first line is not class,count")
    return [[row["class"], int(row["count"] or "")] for row in rows]


def counts_by_label(counts: Sequence[Any], classnames: Sequence[str]) -> list[int]:
    """The number of shots of each of K classes, from what `read_counts` gives and K class names by label."""
    if all(isinstance(count, int) for count in counts):
        if len(counts) != len(classnames):
            raise CoopError(
                f"shots: {len(counts)} numbers, and the data set has {len(classnames)} classes; give one for each, in "
                f"the order of its classes ({shorten(list(classnames))})"
            )
        return list(counts)
    of = {_spaced(name): count for name, count in counts}
    known = {_spaced(name) for name in classnames}
    if unknown := [name for name, _ in counts if _spaced(name) not in known]:
        near = difflib.get_close_matches(_spaced(unknown[0]), known, n=3)
        hint = f"; near matches: {', '.join(near)}" if near else ""
        raise CoopError(f"shots: the data set has no class {shorten(unknown)}{hint}")
    if len(of) < len(counts):
        twice = next(name for name, times in Counter(_spaced(name) for name, _ in counts).items() if times > 1)
        raise CoopError(f"shots: two numbers for the class {twice}")
    if missing := [name for name in classnames if _spaced(name) not in of]:
        raise CoopError(f"shots: no number for the classes {shorten(missing)}; give one for each (0: no image)")
    return [of[_spaced(name)] for name in classnames]


def _spaced(name: str) -> str:
    return name.replace("_", " ")
