"""The published figures of published.csv, and what they may be held against."""

import shlex
from pathlib import Path
from typing import Any

import pandas as pd

from coop.errors import CoopError
from coop.report.groups import column
from coop.report.records import shown

FILE = Path(__file__).resolve().parents[1] / "assets" / "published.csv"
# How sure a figure is, the surest first, and its mark in tables.
MARKS = {"verified": "\N{BLACK DIAMOND}", "recalled": "\N{WHITE DIAMOND}", "low": "?"}
CONFIDENCES = list(MARKS)
COLUMNS = (
    "table",
    "dataset",
    "method",
    "backbone",
    "shots",
    "n_ctx",
    "setting",
    "accuracy_percent",
    "confidence",
    "source",
)
ELEVEN = {
    *("imagenet", "caltech101", "oxford_pets", "stanford_cars", "oxford_flowers", "food101", "fgvc_aircraft"),
    *("sun397", "dtd", "eurosat", "ucf101"),
}
# Data sets of which averages were published, by the name of the average in published.csv.
AVERAGES = {
    "average of 11 data sets": ELEVEN,
    "average of 10 targets": ELEVEN - {"imagenet"},
    "average of 4 targets": {"imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r"},
}


def read_published(path: Path = FILE) -> pd.DataFrame:
    """Read published.csv.

    Returns:
        A row for each figure: its columns, and in "stated" a dict of the keys that the source states (empty: none).

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
    return pd.DataFrame(figures, columns=[*COLUMNS, "stated"], dtype=object).drop(columns="setting")


def _figure(line: dict[str, str]) -> dict[str, Any]:
    if line["confidence"] not in CONFIDENCES:
        raise ValueError(f"confidence {line['confidence']!r}; allowed are {', '.join(CONFIDENCES)}")
    return line | {
        "shots": int(line["shots"]),
        "n_ctx": int(line["n_ctx"]) if line["n_ctx"] else None,
        "stated": dict(word.split("=", 1) for word in shlex.split(line["setting"])),
        "accuracy_percent": float(line["accuracy_percent"]),
    }


def compare(published: pd.DataFrame, settings: pd.DataFrame) -> pd.DataFrame:
    """Published figures beside our settings that agree in data set, method, backbone, shots and, if stated, n_ctx.

    Returns:
        A row for each pair: the columns of the figure, "setting" (an index of `settings`), "ours", "sd", "n", and
        "data"; "differing" and "unchecked" (keys in which the settings differ, and that our runs did not record);
        "same_setting"; "comparable" (and more than a mere recollection); "difference" (percentage points, NaN where
        they must not be compared).
    """
    place = ["dataset", "method", "backbone", "shots"]
    ours = settings.assign(own_n_ctx=column(settings, "n_ctx")).reset_index(names="setting")
    ours = ours.rename(columns={"mean": "ours"})[[*place, "own_n_ctx", "setting", "data", "ours", "sd", "n"]]
    pairs = published.merge(ours.astype(dict.fromkeys(place, object)), on=place)
    pairs = pairs[pairs["n_ctx"].isna() | (pairs["n_ctx"] == pairs["own_n_ctx"])].assign(n_ctx=pairs["own_n_ctx"])
    keys = settings.loc[pairs["setting"].unique()].to_dict("index")
    both = zip(pairs["setting"], pairs["stated"], strict=True)
    found = pd.Series([differences(keys[setting], stated) for setting, stated in both], pairs.index, dtype=object)
    pairs, found = pairs[found.notna()], found.dropna()
    pairs = pairs.assign(differing=found.map(lambda names: names[0]), unchecked=found.map(lambda names: names[1]))
    pairs["same_setting"] = pairs["stated"].astype(bool) & ~pairs["differing"].astype(bool)
    pairs["comparable"] = pairs["same_setting"] & (pairs["confidence"] != "low")
    pairs["difference"] = (100 * pairs["ours"] - pairs["accuracy_percent"].astype(float)).where(pairs["comparable"])
    return pairs.drop(columns="own_n_ctx").reset_index(drop=True)


def differences(keys: dict[str, Any], stated: dict[str, str]) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """Keys in which our setting differs from the stated one, with both values; and those that we did not record.

    None where they were not trained on the same data: what was tested where it was trained states no source.
    """
    source = keys.get("trained_on"), keys.get("trained_classes")
    if stated.get("trained_on") != (None if source == (keys["dataset"], keys["classes"]) else source[0]):
        return None
    differing, unchecked = [], []
    for key, there in stated.items():
        value = keys.get(key)  # as published.csv and the command line write it:
        here = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
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


def derived_averages(found: pd.DataFrame, data: list[str]) -> pd.DataFrame:
    """Averages of the figures of one table, with the lowest confidence among them."""
    found = found[found["comparable"] & found["data"].isin(data)]
    found = found.drop_duplicates(["curve", "setting", "table"], keep="last").astype({"accuracy_percent": float})
    found = found.sort_values("confidence", key=lambda names: -names.map(CONFIDENCES.index), kind="stable")
    firsts = {name: (name, "first") for name in ("method", "backbone", "n_ctx", "confidence")}
    sums = {"accuracy_percent": ("accuracy_percent", "mean"), "unchecked": ("unchecked", "sum")}
    found = found.groupby(["table", "curve", "shots"]).agg(**firsts, **sums, figures=("data", "size")).reset_index()
    return found[found["figures"] == len(data)].assign(source="average of its figures")


def stated_averages(published: pd.DataFrame, settings: pd.DataFrame, points: pd.DataFrame) -> pd.DataFrame:
    """Averages that were published themselves, by the keys of the first setting of each curve and number of shots.

    `points` are those of curves on the data sets that are averaged.
    """
    names = set(settings.loc[points["setting"].unique(), "dataset"])
    figures = published[published["dataset"].map(lambda average: AVERAGES.get(average) == names).astype(bool)]
    points = points.drop_duplicates(["curve", "shots"]).set_index("setting")
    firsts = settings.loc[points.index if len(figures) else []]
    elsewhere = column(firsts, "trained_on").where(column(firsts, "trained_on") != firsts["dataset"], None)
    firsts = firsts.assign(dataset=figures["dataset"].max(), trained_on=elsewhere)
    pairs = compare(figures, firsts)
    pairs = pairs[pairs["same_setting"]].drop(columns=["ours", "sd", "n"])
    return pairs.assign(curve=pairs["setting"].map(points["curve"]))
