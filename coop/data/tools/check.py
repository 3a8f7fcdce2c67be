"""Is a data set there, and complete? Its counts against the published ones."""

from collections.abc import Sequence
from typing import NamedTuple

from coop.data.manifest import common_folder
from coop.data.readers.listing import NotThereError
from coop.data.sampling import PARTS, Splits
from coop.data.tools.catalogue import PUBLISHED
from coop.errors import CoopError


class Report(NamedTuple):
    """What was found of one data set."""

    name: str
    state: str  # "complete", "counts differ", "not there", "not usable" (damaged), or "there" (no counts are published)
    splits: Splits | None  # what the reader gave
    notes: list[str]  # lines for the user: what is wrong and how to fix it

    @property
    def good(self) -> bool:
        return self.state in ("complete", "there")


def report(name: str, read) -> Report:
    """Read a data set (`read()` gives its splits) and hold it against the published counts."""
    published = PUBLISHED.get(name)
    try:
        splits = read()
    except CoopError as error:
        state = "not there" if isinstance(error, NotThereError) else "not usable"
        return Report(name, state, None, [str(error), *_how(name)])
    if published is None:
        return Report(name, "there", splits, [])
    counts, classes = count(splits), len(splits.classnames)
    if counts == published.counts and classes == published.classes:
        return Report(name, "complete", splits, [])
    differ = f"counts are {_show(counts, classes)}; published: {_show(published.counts, published.classes)}"
    why = "images or classes are missing, or there are more of them than in the published data set"
    if splits.origin == "generated":
        why = "the split is generated: its counts may differ from the paper's, whose split file was not found"
    return Report(name, "counts differ", splits, [differ, why, *_how(name)])


def _how(name: str) -> list[str]:
    """How to get a data set."""
    if name not in PUBLISHED:
        return []
    by_command = f"python -m coop.data prepare {name} data_root=DIR, or by hand from "
    return [f"to get it: {by_command if PUBLISHED[name].torchvision else ''}{PUBLISHED[name].how}"]


def count(splits: Splits) -> tuple[int, int, int]:
    return len(splits.train), len(splits.val), len(splits.test)


def _show(counts: Sequence[int], classes: int) -> str:
    return "/".join(map(str, counts)) + f" in {classes} classes"


def show_reports(reports: Sequence[Report], data_root: str | None) -> None:
    """Print a table of what was found, then what to do about the rest."""
    print(f"data_root: {data_root or 'not given (data_root=DIR)'}\n")
    rows = [("data set", "state", "classes", *PARTS, "split", "where"), *map(_row, reports)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    for item in reports:
        for index, note in enumerate(item.notes):
            print(f"\n{item.name}: {note}" if index == 0 else f"    {note}")


def _row(item: Report) -> tuple[str, ...]:
    if item.splits is None:
        return item.name, item.state, *["-"] * 6
    counts = map(str, (len(item.splits.classnames), *count(item.splits)))
    return item.name, item.state, *counts, item.splits.origin, common_folder(item.splits)
