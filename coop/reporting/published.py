"""The published figures of expected.csv, and which of our cells they may be held against."""

import csv
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coop.errors import CoopError
from coop.reporting.cells import Cell
from coop.reporting.runs import Keys

PACKAGE = Path(__file__).resolve().parents[1]
CONFIDENCES = ("verified", "recalled", "low")
COLUMNS = ("table", "dataset", "method", "backbone", "shots", "n_ctx", "setting", "accuracy_percent", "confidence")


@dataclass(frozen=True)
class Figure:
    """One line of expected.csv.

    Attributes:
        table: where it was published.
        same: what ours must be equal in before anything else is looked at.
        setting: keys of a run with the values that the source states; empty: the source states none.
        accuracy: percent.
        confidence: "verified", "recalled" or "low"; nothing is subtracted from a "low" one.
        source: where it was read.
    """

    table: str
    same: Keys
    setting: dict[str, str]
    accuracy: float
    confidence: str
    source: str


@dataclass(frozen=True, eq=False)
class Comparison:
    """A published figure beside one of ours.

    Attributes:
        figure, cell: the two.
        differing: keys in which they differ, with both values; empty: the setting is the same.
        unchecked: keys that our runs did not record.
    """

    figure: Figure
    cell: Cell
    differing: tuple[str, ...]
    unchecked: tuple[str, ...]

    @property
    def comparable(self) -> bool:
        """Whether ours may be held against it: the same setting, and a figure that is not a mere recollection."""
        return self.same_setting and self.figure.confidence != "low"

    @property
    def same_setting(self) -> bool:
        return bool(self.figure.setting) and not self.differing

    @property
    def difference(self) -> float | None:
        """Ours less the published one, in percentage points; None where they must not be compared."""
        return 100 * self.cell.mean - self.figure.accuracy if self.comparable else None


def expected_file() -> Path:
    """Where expected.csv lies: inside an installed package, or in experiments/ of a checkout."""
    installed = PACKAGE / "assets" / "paper" / "expected.csv"
    return installed if installed.is_file() else PACKAGE.parent / "experiments" / "paper" / "expected.csv"


def read_figures(path: Path) -> list[Figure]:
    """Read expected.csv.

    Raises:
        CoopError: no such file, or a line that is not of its form.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if missing := set(COLUMNS) - set(reader.fieldnames or ()):
                raise CoopError(f"{path}: lacks the columns {', '.join(sorted(missing))}")
            return [_figure(path, reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError) as error:
        raise CoopError(f"{path}: the published figures cannot be read ({error})") from error


def _figure(path: Path, line: int, row: dict[str, str]) -> Figure:
    try:
        if row["confidence"] not in CONFIDENCES:
            raise ValueError(f"confidence {row['confidence']!r}; allowed are {', '.join(CONFIDENCES)}")
        same = {key: row[key] for key in ("dataset", "method", "backbone")} | {"shots": int(row["shots"])}
        return Figure(
            table=row["table"],
            same=same | ({"n_ctx": int(row["n_ctx"])} if row["n_ctx"] else {}),
            setting=dict(word.split("=", 1) for word in shlex.split(row["setting"])),
            accuracy=float(row["accuracy_percent"]),
            confidence=row["confidence"],
            source=row["source"],
        )
    except (ValueError, TypeError) as error:
        raise CoopError(f"{path}, line {line}: not a published figure ({error})") from None


def compare(figures: Sequence[Figure], cells: Sequence[Cell]) -> list[Comparison]:
    """Published figures beside those of our cells that agree in data set, method, backbone, shots and n_ctx."""
    by_place: dict[tuple, list[Cell]] = {}
    for cell in cells:
        by_place.setdefault(_place(cell.keys), []).append(cell)
    return [
        _comparison(figure, cell)
        for figure in figures
        for cell in by_place.get(_place(figure.same), ())
        if cell.keys.get("trained_on") == figure.setting.get("trained_on")
    ]


def _place(keys: Keys) -> tuple:
    return tuple(keys.get(key) for key in ("dataset", "method", "backbone", "shots", "n_ctx"))


def _comparison(figure: Figure, cell: Cell) -> Comparison:
    differing, unchecked = [], []
    for key, there in figure.setting.items():
        here = _as_written(cell.keys.get(key))
        if _unrecorded(key, cell.keys):
            unchecked.append(key)
        elif key == "pretrained" and here == f"{cell.keys['backbone'].removesuffix('-quickgelu')}.pt":
            unchecked.append(f"whether {here} is {there}'s")  # the name under which OpenAI offers the file
        elif here != there:
            differing.append(f"{key} is {here} here, {there} there")
    return Comparison(figure, cell, tuple(differing), tuple(unchecked))


def _unrecorded(key: str, keys: Keys) -> bool:
    """Whether our runs say nothing about a key: it stands in config.yaml alone, and that was not there.

    Of the target of an evaluation, results.json says nothing beyond what it was tested on.
    """
    if key.startswith("dataset.") and not any(name.startswith("dataset.") for name in keys):
        return True
    return "." in key and keys.get("config.yaml") == "not there"


def _as_written(value: Any) -> str:
    """A value as expected.csv and the command line write it."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
