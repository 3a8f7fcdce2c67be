"""The published figures of published.csv, and which of our settings they may be held against."""

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from coop.errors import CoopError
from coop.report.groups import Curves, column
from coop.report.records import shown

FILE = Path(__file__).resolve().parents[1] / "assets" / "published.csv"
CONFIDENCES = ("verified", "recalled", "low")
PLACE = ("dataset", "method", "backbone", "shots", "n_ctx")
COLUMNS = ("table", *PLACE, "setting", "accuracy_percent", "confidence", "source")
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
    place = [name for name in PLACE if name != "n_ctx"]
    ours = settings.assign(n_ctx=column(settings, "n_ctx")).reset_index(names="setting")
    ours = ours.rename(columns={"mean": "ours", "n_ctx": "own_n_ctx"})
    ours = ours[[*place, "own_n_ctx", "setting", "data", "ours", "sd", "n"]].astype(dict.fromkeys(place, object))
    pairs = published.merge(ours, on=place)
    keys = settings.loc[pairs["setting"].unique()].to_dict("index")
    pairs = pairs[pairs["n_ctx"].isna() | (pairs["n_ctx"] == pairs["own_n_ctx"])].assign(n_ctx=pairs["own_n_ctx"])
    both = zip(pairs["setting"], pairs["stated"], strict=True)
    same_source = [_trained_elsewhere(keys[setting]) == stated.get("trained_on") for setting, stated in both]
    pairs = pairs.loc[pairs.index[same_source] if same_source else []]
    both = zip(pairs["setting"], pairs["stated"], strict=True)
    found = [differences(keys[setting], stated) for setting, stated in both]
    pairs = pairs.assign(differing=[differing for differing, _ in found], unchecked=[names for _, names in found])
    pairs["same_setting"] = pairs["stated"].astype(bool) & ~pairs["differing"].astype(bool)
    pairs["comparable"] = pairs["same_setting"] & (pairs["confidence"] != "low")
    pairs["difference"] = (100 * pairs["ours"] - pairs["accuracy_percent"].astype(float)).where(pairs["comparable"])
    return pairs.drop(columns="own_n_ctx").reset_index(drop=True)


def _trained_elsewhere(keys: dict[str, Any]) -> str | None:
    """What a setting was trained on, unless it is what it was tested on."""
    trained = keys.get("trained_on"), keys.get("trained_classes")
    return None if trained == (keys["dataset"], keys["classes"]) else trained[0]


def differences(keys: dict[str, Any], stated: dict[str, str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
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
    """A value as published.csv and the command line write it."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def beside(
    published: pd.DataFrame, pairs: pd.DataFrame, settings: pd.DataFrame, curves: Curves, places: Iterable
) -> pd.DataFrame:
    """Figures of the same setting beside curves, on data sets and on averages.

    An average over data sets is held against the average of the figures of one published table, if that has all of
    them, and against averages that were published themselves.

    Args:
        published, pairs, settings: of a study, `pairs` from `compare`.
        curves: to be held against them.
        places: (name, data sets) of what is looked at.

    Returns:
        A row for each curve, place ("data"), number of shots and figure: the columns of `compare`, and "curve".
    """
    members = curves.points.drop_duplicates(["curve", "setting"])[["curve", "setting"]]
    found = members.merge(pairs[pairs["same_setting"]], on="setting")
    blocks = [found.iloc[:0]]
    for name, data in places:
        if len(data) == 1:
            blocks.append(found[found["data"].isin(data)])
        else:
            ours = curves.average(data).rename(columns={"mean": "ours"}).reset_index()
            for averages in (_derived(found, data), _stated(published, settings, curves, data)):
                averages = averages.astype({"shots": int}).merge(ours, on=["curve", "shots"]).assign(data=name)
                difference = 100 * averages["ours"] - averages["accuracy_percent"].astype(float)
                blocks.append(averages.assign(difference=difference.where(averages["confidence"] != "low")))
    return pd.concat([block for block in blocks if len(block)] or blocks, ignore_index=True)


def _derived(found: pd.DataFrame, data: list[str]) -> pd.DataFrame:
    """Averages of the figures of one table, with the lowest confidence among them."""
    found = found[found["comparable"] & found["data"].isin(data)]
    found = found.drop_duplicates(["curve", "setting", "table"], keep="last").astype({"accuracy_percent": float})
    found = found.sort_values("confidence", key=lambda names: -names.map(CONFIDENCES.index), kind="stable")
    firsts = {name: (name, "first") for name in ("method", "backbone", "n_ctx", "confidence")}
    sums = {"accuracy_percent": ("accuracy_percent", "mean"), "unchecked": ("unchecked", "sum")}
    found = found.groupby(["table", "curve", "shots"]).agg(**firsts, **sums, figures=("data", "size")).reset_index()
    return found[found["figures"] == len(data)].assign(source="average of its figures")


def _stated(published: pd.DataFrame, settings: pd.DataFrame, curves: Curves, data: list[str]) -> pd.DataFrame:
    """Averages that were published themselves, by the keys of the first setting of each curve and number of shots."""
    points = curves.points[curves.points["data"].isin(data)]
    names = set(settings.loc[points["setting"].unique(), "dataset"])
    figures = published[published["dataset"].map(lambda average: AVERAGES.get(average) == names).astype(bool)]
    points = points.drop_duplicates(["curve", "shots"]).set_index("setting")
    firsts = settings.loc[points.index if len(figures) else []]
    elsewhere = column(firsts, "trained_on").where(column(firsts, "trained_on") != firsts["dataset"], None)
    firsts = firsts.assign(dataset=figures["dataset"].max(), trained_on=elsewhere)
    pairs = compare(figures, firsts)
    pairs = pairs[pairs["same_setting"]].drop(columns=["ours", "sd", "n"])
    return pairs.assign(curve=pairs["setting"].map(points["curve"]))
