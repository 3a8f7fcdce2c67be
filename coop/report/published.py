"""The published figures of expected.csv, and which of our cells they may be held against."""

import shlex
from pathlib import Path
from typing import Any

import pandas as pd

from coop.errors import CoopError
from coop.report.groups import Curves, column
from coop.report.records import shown

PACKAGE = Path(__file__).resolve().parents[1]
CONFIDENCES = ("verified", "recalled", "low")
PLACE = ("dataset", "method", "backbone", "shots", "n_ctx")
COLUMNS = ("table", *PLACE, "setting", "accuracy_percent", "confidence", "source")


def expected_file() -> Path:
    """Where expected.csv lies: inside an installed package, or in experiments/ of a checkout."""
    installed = PACKAGE / "assets" / "paper" / "expected.csv"
    return installed if installed.is_file() else PACKAGE.parent / "experiments" / "paper" / "expected.csv"


def read_published(path: Path) -> pd.DataFrame:
    """Read expected.csv.

    Returns:
        A row for each figure: its columns, and in "setting" a dict of the keys that the source states (empty: none).

    Raises:
        CoopError: no such file, or a line that is not of its form.
    """
    try:
        lines = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8").astype(object)
    except (OSError, ValueError) as error:
        raise CoopError(f"{shown(path)}: the published figures cannot be read ({error})") from error
    if missing := set(COLUMNS) - set(lines):
        raise CoopError(f"{shown(path)}: lacks the columns {', '.join(sorted(missing))}")
    figures = []
    for number, line in enumerate(lines.to_dict("records"), 2):
        try:
            figures.append(_figure(line))
        except (ValueError, TypeError, AttributeError) as error:
            raise CoopError(f"{shown(path)}, line {number}: not a published figure ({error})") from None
    return pd.DataFrame(figures, columns=COLUMNS, dtype=object)


def _figure(line: dict[str, str]) -> dict[str, Any]:
    if line["confidence"] not in CONFIDENCES:
        raise ValueError(f"confidence {line['confidence']!r}; allowed are {', '.join(CONFIDENCES)}")
    return line | {
        "shots": int(line["shots"]),
        "n_ctx": int(line["n_ctx"]) if line["n_ctx"] else None,
        "setting": dict(word.split("=", 1) for word in shlex.split(line["setting"])),
        "accuracy_percent": float(line["accuracy_percent"]),
    }


def compare(published: pd.DataFrame, cells: pd.DataFrame) -> pd.DataFrame:
    """Published figures beside our cells that agree in data set, method, backbone, shots and n_ctx.

    Returns:
        A row for each pair: the columns of the figure, "cell" (an index of `cells`), "ours", "sd", "n", and "data";
        "differing" and "unchecked" (keys in which the settings differ, and that our runs did not record);
        "same_setting"; "comparable" (and more than a mere recollection); "difference" (percentage points, NaN where
        they must not be compared).
    """
    ours = cells.assign(n_ctx=column(cells, "n_ctx")).reset_index(names="cell")
    ours = ours.rename(columns={"mean": "ours"})[[*PLACE, "cell", "data", "ours", "sd", "n"]]
    pairs = published.merge(ours.astype(dict.fromkeys(PLACE, object)), on=list(PLACE))
    keys = cells.loc[pairs["cell"].unique()].to_dict("index")
    both = zip(pairs["cell"], pairs["setting"], strict=True)
    same_source = [keys[cell].get("trained_on") == stated.get("trained_on") for cell, stated in both]
    pairs = pairs.loc[pairs.index[same_source] if same_source else []]
    settings = [_settings(keys[cell], stated) for cell, stated in zip(pairs["cell"], pairs["setting"], strict=True)]
    pairs = pairs.assign(differing=[differing for differing, _ in settings], unchecked=[u for _, u in settings])
    pairs["same_setting"] = pairs["setting"].astype(bool) & ~pairs["differing"].astype(bool)
    pairs["comparable"] = pairs["same_setting"] & (pairs["confidence"] != "low")
    pairs["difference"] = (100 * pairs["ours"] - pairs["accuracy_percent"].astype(float)).where(pairs["comparable"])
    return pairs.reset_index(drop=True)


def _settings(keys: dict[str, Any], stated: dict[str, str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Keys in which our setting differs from the stated one, with both values; and those that we did not record."""
    differing, unchecked = [], []
    for key, there in stated.items():
        here = _as_written(keys.get(key))
        if _unrecorded(key, keys):
            unchecked.append(key)
        elif key == "pretrained" and here == f"{keys['backbone'].removesuffix('-quickgelu')}.pt":
            unchecked.append(f"whether {here} is {there}'s")  # the name under which OpenAI offers the file
        elif here != there:
            differing.append(f"{key} is {here} here, {there} there")
    return tuple(differing), tuple(unchecked)


def _unrecorded(key: str, keys: dict[str, Any]) -> bool:
    """Whether our runs say nothing about a key: it stands in config.yaml alone, and that was not there.

    Of the target of an evaluation, results.json says nothing beyond what it was tested on.
    """
    if key.startswith("dataset."):
        return not any(name.startswith("dataset.") and value is not None for name, value in keys.items())
    return "." in key and keys.get(key) is None and keys.get("config.yaml") == "not there"


def _as_written(value: Any) -> str:
    """A value as expected.csv and the command line write it."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def published_averages(pairs: pd.DataFrame, curves: Curves, data: list[str], name: str) -> pd.DataFrame:
    """Averages over data sets each of which has a figure in the same published table, to be held against ours.

    Args:
        pairs: of `compare`.
        curves: whose averages.
        data: over which data sets.
        name: of this average.

    Returns:
        A row for each curve, number of shots and table, with the columns of `compare` and "curve"; its confidence is
        the lowest of the figures'.
    """
    places = curves.points.drop_duplicates(["curve", "cell"])[["curve", "cell"]]
    beside = places.merge(pairs[pairs["comparable"] & pairs["data"].isin(data)], on="cell")
    beside = beside.drop_duplicates(["curve", "cell", "table"], keep="last").astype({"accuracy_percent": float})
    beside = beside.sort_values("confidence", key=lambda names: -names.map(CONFIDENCES.index), kind="stable")
    firsts = {name: (name, "first") for name in ("method", "backbone", "n_ctx", "confidence")}
    sums = {"accuracy_percent": ("accuracy_percent", "mean"), "unchecked": ("unchecked", "sum")}
    found = beside.groupby(["table", "curve", "shots"]).agg(**firsts, **sums, figures=("data", "size")).reset_index()
    ours = curves.average(data).rename(columns={"mean": "ours"}).reset_index()
    found = found[found["figures"] == len(data)].merge(ours, on=["curve", "shots"])
    difference = 100 * found["ours"] - found["accuracy_percent"]
    return found.assign(data=name, source="average of its figures", difference=difference)
