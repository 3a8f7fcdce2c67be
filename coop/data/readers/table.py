"""A user's own photographs, listed in a CSV file: path,label[,split]."""

import csv
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from coop.data.readers.folder import PART_OF, Images, Names, splits_of_classes
from coop.data.readers.listing import log, shorten
from coop.data.readers.split_file import check_images
from coop.data.sampling import PARTS, Splits
from coop.errors import CoopError

COLUMNS = ["path", "label", "split"]


def read_csv(
    data_root: str | None,
    *,
    path: str | None = None,
    images: str | None = None,
    classnames: Names = None,
    seed: int = 1,
) -> Splits:
    """Read a CSV file (UTF-8) with a header line: `path,label`, or `path,label,split`.

    A label is the name of a class. `split` is train, val (valid, validation) or test; without that column, each class
    is split 50/20/30 by `seed`, and `origin` is "generated". Classes are sorted by label, numbers by value.

    Args:
        data_root: not used.
        path: the CSV file.
        images: the folder that relative paths start from; the CSV file's own folder if not given.
        classnames: where labels are not the names (numbers, codes): a mapping, label to name, or a file of
            `label name` lines.
        seed: seed of the 50/20/30 split; another seed gives another test set.

    Raises:
        CoopError: the file is missing or malformed, or names images that don't exist.
    """
    if not path:
        raise CoopError("dataset=csv needs dataset.path=FILE, a CSV file that starts path,label or path,label,split")
    file = Path(path).expanduser()
    folder = Path(images).expanduser() if images else file.parent
    rows = read_rows(file)
    check_images(folder, [row["path"] for row in rows], file)
    parts: dict[str, Images] = {part: {} for part in PARTS} if "split" in rows[0] else {"all": {}}
    for row in rows:
        by_label = parts[PART_OF[row["split"]] if "split" in row else "all"]
        by_label.setdefault(row["label"], []).append(os.path.join(folder, row["path"]))
    if "split" in rows[0] and not (parts["train"] and parts["test"]):
        raise CoopError(f"{file}: the split column needs rows of both train and test; without it, 50/20/30 is made")
    return splits_of_classes(file, parts, seed, classnames, sort_labels)


@contextmanager
def open_csv(file: Path, where: str) -> Iterator[csv.DictReader]:
    """The rows of a CSV file in UTF-8; raises CoopError, which begins with `where`, if it is none."""
    try:
        with open(file, newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, skipinitialspace=True)
            reader.fieldnames = [name.strip() for name in reader.fieldnames or []]
            yield reader
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CoopError(f"{where}can't be read as a CSV file in UTF-8: {error}") from None


def read_rows(file: Path) -> list[dict[str, str]]:
    """The rows of the CSV file, checked one by one; every row has the keys of the header line.

    Raises:
        CoopError: names the file and the line.
    """
    with open_csv(file, f"{file}: ") as reader:
        if reader.fieldnames not in (COLUMNS[:2], COLUMNS):
            found = ",".join(reader.fieldnames)
            raise CoopError(f"{file}: the first line is {found!r}; expected path,label or path,label,split")
        rows = [_check_row(row, file, reader.line_num) for row in reader]
    if not rows:
        raise CoopError(f"{file}: no rows below the header line")
    _check_repeated(rows, file)
    return rows


def _check_row(row: dict, file: Path, line: int) -> dict[str, str]:
    values = {key: value.strip() if isinstance(value, str) else value for key, value in row.items()}
    if None in values or not all(values.values()):
        raise CoopError(f"{file}, line {line}: expected {len(row) - (None in row)} values, none of them empty")
    if values.get("split", "train") not in PART_OF:
        raise CoopError(f"{file}, line {line}: split is {values['split']!r}; allowed are {', '.join(PART_OF)}")
    return values


def _check_repeated(rows: list[dict[str, str]], file: Path) -> None:
    seen: dict[str, dict[str, str]] = {}
    repeated = []
    for row in rows:
        first = seen.setdefault(os.path.normpath(row["path"]), row)
        if first != row:
            two = " and ".join(",".join(values.values()) for values in (first, row))
            raise CoopError(f"{file}: {row['path']} stands there twice, as {two}. Keep one of the two")
        if first is not row:
            repeated.append(row["path"])
    if repeated and "split" not in rows[0]:
        raise CoopError(
            f"{file}: {len(repeated)} rows stand there twice: {shorten(repeated)}. Split 50/20/30, an image could be "
            "trained on and tested on; keep one row of each, or add a split column"
        )
    if repeated:
        log.warning("%s: %d rows stand there twice and count twice: %s", file, len(repeated), shorten(repeated))


def sort_labels(labels: Images) -> list[str]:
    """Labels in order: by value if all are whole numbers, else as text."""
    return sorted(labels, key=(lambda label: (int(label), label)) if all(map(str.isdecimal, labels)) else None)
