"""Which runs are averaged (settings), and which averages make one curve."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from coop.report.records import BASE_TO_NEW, KINDS, MEASURED, OWN, is_zero_shot, keys_of

RULE = (
    "Runs that agree in every key but the seed are one setting: they are averaged. Settings of other data sets and "
    "shots make one curve if their configs were written alike: all keys agree but those that describe the data (split, "
    "num_classes, n_test, dataset.*) and trainable_params; and a key that the config derives from others counts as it "
    "is written there (ProLIP's penalty: ${coop.over:1,${shots}}; epochs: the published rule), not as what comes out. "
    "Where one data set has two values of such a key, that key makes two curves."
)
# The keys of RULE that may differ along a curve.
ALONG = ("dataset", "shots", "split", "num_classes", "n_test", "trainable_params")  # and dataset.*
# Keys that labels name wherever two curves of a report differ in them, of whatever methods.
ALWAYS_SAID = ("n_ctx", "method.ctx_init", "class_specific", "class_token_position", "epochs", "optimizer.lr")
# Keys that never stand in a label: they have columns, rows or tables of their own.
ELSEWHERE = ("kind", "dataset", "classes", "shots", "backbone", "pretrained", "method", "trained_on", "trained_classes")
BY_SHOTS = ("trainable_params",)  # goes with the shots as well: Tip-Adapter-F trains a cache of them
BY_CONFIG = "by config"  # stands for words that a config derives, such as a data set's templates
NOTHING = "\N{EN DASH}"  # stands where there is no value, in labels and in tables
RUNS_OWN = "the run's"  # stands for a split's seed that is the seed of the run
# Two accuracies this close are the same, computed on machines that round differently.
SAME = 1e-6


@dataclass
class Curves:
    """Averages that may stand in one row or on one line; zero-shot among them, at 0 shots."""

    # A row for each curve, in the order in which it is shown: "kind", the keys that its settings agree in, "backbone"
    # with its weights, "zero_shot" (whether it is), "source" (what a transfer was trained on), "label".
    table: pd.DataFrame
    points: pd.DataFrame  # a row for each curve, test set ("data"), number of shots and seed: "acc", "setting"

    def of(self, **values: Any) -> "Curves":
        """Those with these values in the columns of `table`."""
        return self.at(self.table.index[(self.table[[*values]] == pd.Series(values)).all(axis=1)])

    def at(self, index: Iterable[int]) -> "Curves":
        """Those with these numbers."""
        return Curves(self.table.loc[index], self.points[self.points["curve"].isin(index)])

    def at_shots(self, shots: int) -> "Curves":
        """Those that have this number of shots, and zero-shot."""
        points = self.points[self.points["shots"].isin([0, shots])]
        return Curves(self.table.loc[sorted(points["curve"].unique())], points)

    def shots(self) -> list[int]:
        """Numbers of shots of the trained ones, ascending."""
        return sort_shots(self.of(zero_shot=False).points["shots"])

    def by_seed(self, data: Sequence[str]) -> pd.Series:
        """Averages over these test sets, of each seed that all of them have, by curve, shots and seed."""
        points = self.points[self.points["data"].isin(data)]
        wide = points.pivot_table("acc", ["curve", "shots", "seed"], "data", sort=False).reindex(columns=list(data))
        return wide.dropna().mean(axis=1)

    def average(self, data: Sequence[str]) -> pd.DataFrame:
        """`by_seed` over seeds: "n", "mean" and "sd" (NaN with one seed), by curve and shots."""
        return mean_sd(self.by_seed(data), ["curve", "shots"])


def mean_sd(values: pd.Series, by: Any) -> pd.DataFrame:
    """Number, mean and sample deviation (NaN for a single value) of groups."""
    return values.groupby(by).agg(n="size", mean="mean", sd="std")


def data_name(dataset: str, classes: str) -> str:
    """ "caltech101", "caltech101 (base)"."""
    return dataset if classes == "all" else f"{dataset} ({classes})"


def shots_text(shots: int) -> str:
    """ "1 shot", "16 shots", "all images"."""
    return "all images" if shots < 1 else f"{shots} shot{'s' if shots > 1 else ''}"


def sort_shots(shots: Iterable[int]) -> list[int]:
    """Ascending; "all images" (-1) last."""
    return sorted(set(shots), key=lambda number: (number < 0, number))


def column(frame: pd.DataFrame, name: str) -> pd.Series:
    """A column; all None where no run has the key."""
    return frame[name] if name in frame else pd.Series([None] * len(frame), frame.index, dtype=object)


def numbered(frame: pd.DataFrame, names: Sequence[str]) -> pd.Series:
    """A number for each row: the same where rows agree in all of these columns; in order of first appearance."""
    telling = [name for name in names if frame[name].nunique(dropna=False) > 1]
    if not telling:
        return pd.Series(0, index=frame.index)
    return frame.groupby(telling, sort=False, dropna=False).ngroup()


def make_settings(runs: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """Average over seeds what is the same in everything else.

    Returns:
        The settings (a row each: their keys, "kind", "data", "n", "mean", "sd", "seeds", "zero_shot", "gain",
        "gain_sd", "uses", "derived" (a list), and means of `MEASURED`); their scores (a row for each setting and
        seed); and warnings about runs with the same setting and seed, of which the first counts.
    """
    runs = _settle_split_seeds(runs.reset_index(drop=True))
    keys = keys_of(runs)
    runs["setting"] = numbered(runs, [*keys, "kind"])
    runs["gain"] = runs["acc"] - runs["zero_shot"]
    scores = runs.sort_values(["setting", "seed"], kind="stable").drop_duplicates(["setting", "seed"])
    warnings = _disagreements(runs)
    by_setting = scores.groupby("setting")
    settings = runs.groupby("setting").first()[[*keys, "kind", "uses"]].astype(dict.fromkeys(keys, object))
    settings = settings.where(settings.notna(), None)
    settings = settings.join(by_setting[["zero_shot", "gain", *MEASURED]].mean())
    settings["gain_sd"] = by_setting["gain"].std()
    settings["derived"] = runs.groupby("setting")["derived"].unique()
    # Where nothing is random and all is the same, seeds say nothing.
    spread = by_setting["acc"].agg("max") - by_setting["acc"].agg("min")
    fixed = settings.index[is_zero_shot(settings["method"]) & (spread <= SAME)]
    scores = scores[~scores["setting"].isin(fixed) | ~scores.duplicated("setting")]
    scores = scores.assign(seed=scores["seed"].mask(scores["setting"].isin(fixed), runs["seed"].min()))
    settings = settings.join(mean_sd(scores["acc"], scores["setting"]))
    settings["seeds"] = scores["seed"].astype(str).groupby(scores["setting"]).agg(" ".join)
    settings["data"] = [data_name(*names) for names in zip(settings["dataset"], settings["classes"], strict=True)]
    return settings, scores[["setting", "seed", "acc"]], warnings


def _settle_split_seeds(runs: pd.DataFrame) -> pd.DataFrame:
    """A split that is drawn with every run's own seed is one split; one that has the same seed in all runs another."""
    if "dataset.seed" not in runs:
        return runs.copy()
    source = numbered(runs, ["dataset", *(key for key in runs if key.startswith("dataset.") and key != "dataset.seed")])
    own = (runs["dataset.seed"] == runs["seed"]).groupby(source).transform("all")
    return runs.assign(**{"dataset.seed": runs["dataset.seed"].mask(own, RUNS_OWN)})


def _disagreements(runs: pd.DataFrame) -> list[str]:
    """Warnings about runs of one setting and seed that came to different results."""
    by_seed = runs.groupby(["setting", "seed"])["acc"]
    twins = runs[by_seed.transform("max") - by_seed.transform("min") > SAME]
    warnings = []
    for (_, seed), same in twins.groupby(["setting", "seed"]):
        first = same.iloc[0]
        others = same[(same["acc"] - first["acc"]).abs() > SAME]
        listed = zip(others["path"], others["acc"], strict=True)
        left_out = ", ".join(f"{path.rpartition('/')[0]} ({100 * acc:.2f})" for path, acc in listed)
        shots = f", {shots_text(first['shots'])}" if first["shots"] else ""
        what = f"{data_name(first['dataset'], first['classes'])}, {first['backbone']}, {first['method']}{shots}"
        warnings.append(
            f"{what}, seed {seed}: computed more than once with different results; "
            f"{first['path'].rpartition('/')[0]} ({100 * first['acc']:.2f}) counts, left out: {left_out}"
        )
    return warnings


def make_curves(settings: pd.DataFrame, scores: pd.DataFrame, keys: Sequence[str]) -> Curves:
    """Join settings by `RULE`, those of each of `KINDS` apart; `keys` are the columns that say what was run."""
    members = settings.reset_index(names="setting").explode("derived", ignore_index=True)
    written = pd.DataFrame(list(members["derived"].map(json.loads)), members.index, dtype=object)
    values = members[["kind", *(key for key in keys if not _is_along(key))]]
    # Base and new classes are two test sets of one curve, except where each was trained, too.
    sources = column(members, "trained_on").where(members["kind"] != BASE_TO_NEW, None)
    values = values.assign(classes=members["classes"].where(members["kind"] == OWN, None), trained_on=sources)
    values = values.assign(**{key: own.where(own.notna(), members[key]) for key, own in written.items()})
    curve = numbered(values, list(values))
    for key in keys:
        if key in ELSEWHERE or not (key in written or _is_along(key)):
            continue
        place = [curve, members["data"], *([members["shots"]] if key in written or key in BY_SHOTS else [])]
        several = curve.map(members.groupby(place)[key].nunique(dropna=False).gt(1).groupby(level=0).any())
        if several.any():
            values = values.assign(**{key: members[key].where(several, values.get(key))})
    members["curve"] = numbered(values, list(values))
    members = members[~members["curve"].isin(_contained(members))]
    firsts = members.drop_duplicates("curve")
    values = values.loc[firsts.index].set_axis(firsts["curve"])
    ranges = members.groupby("curve")[list(written)].agg(_range)
    came_out = values.assign(
        **{key: ranges[key].where(values[key].isin(own.dropna()), values[key]) for key, own in written.items()}
    )
    table = _shown(came_out.assign(label=labels(values, came_out, members)))
    points = members[["curve", "setting", "data", "shots"]].merge(scores, on="setting")
    points = points.assign(curve=points["curve"].map(pd.Series(range(len(table)), table.index)))
    return Curves(table.reset_index(drop=True), points.astype({"shots": int}))


def _contained(members: pd.DataFrame) -> list[int]:
    """Curves all of whose settings are on another one: the same values, written in another way."""
    curves = members.groupby("curve")["setting"].agg(frozenset)
    curves = list(curves.loc[curves.map(len).sort_values(kind="stable").index].items())
    return [number for place, (number, own) in enumerate(curves, 1) if any(own <= other for _, other in curves[place:])]


def _range(values: pd.Series) -> Any:
    """What a derived key comes to along a curve: its one value, "0.0625 to 1.0", or that it follows the config."""
    found = values.dropna().unique()
    if len(found) == 1:
        return found[0]
    numbers = all(isinstance(value, int | float) for value in found)
    return f"{min(found)} to {max(found)}" if numbers and len(found) else BY_CONFIG


def _is_along(key: str) -> bool:
    return key in ALONG or key.startswith("dataset.")


def _shown(values: pd.DataFrame) -> pd.DataFrame:
    """The table of curves in the order in which they are shown: zero-shot first, then by method, M, and its choices."""
    zero_shot = is_zero_shot(values["method"])
    order = {"kind": values["kind"].map(KINDS.index), "zero_shot": ~zero_shot, "method": values["method"]}
    absent = {"n_ctx": 0, "class_specific": False, "class_token_position": ""}
    order |= {key: column(values, key).fillna(value) for key, value in absent.items()}
    order["epochs"] = column(values, "epochs").map(lambda epochs: not isinstance(epochs, str))
    values = values.loc[pd.DataFrame(order).sort_values(list(order)).index]
    names = zip(values["trained_on"], column(values, "trained_classes"), strict=True)
    weights = zip(values["backbone"], column(values, "pretrained"), strict=True)
    return values.assign(
        backbone=[f"{name} ({pretrained})" if pretrained else name for name, pretrained in weights],
        zero_shot=zero_shot,
        classes=values["classes"].fillna("all"),
        source=[data_name(*pair) if pair[0] else "" for pair in names],
    )


def labels(written: pd.DataFrame, values: pd.DataFrame, members: pd.DataFrame) -> pd.Series:
    """The method, and what tells its curve from the others, as it came out.

    All trained curves name a key of `ALWAYS_SAID` in which any two of them differ; those of one method on one backbone
    name every key in which they differ, or that only some of them have.
    """
    curves, sources = (frame.astype(object).where(frame.notna(), None).to_dict("index") for frame in (values, written))
    for curve in (*curves.values(), *sources.values()):
        if curve.get("n_ctx") and not curve.get("config.yaml") and not curve.get("method.ctx_init"):
            curve["method.ctx_init"] = ""  # known, for the config leaves it out
    parts: dict[int, dict[str, str]] = {number: {} for number in curves}

    def tell(numbers: Iterable[int], key: str, absent: bool, by: dict[int, dict[str, Any]]) -> None:
        """Name a key where its values differ in `by`; `absent`: also for curves that do not have it."""
        found = {number: by[number].get(key) for number in numbers}
        found = found if absent else {number: value for number, value in found.items() if value is not None}
        for number in found if len(set(found.values())) > 1 else ():
            value = curves[number].get(key)
            if value is not None or not (_is_along(key) or key in ("config.yaml", "method.template")):
                parts[number][key] = label_part(key, value)

    trained = values.index[~is_zero_shot(values["method"])]
    for key in ALWAYS_SAID:
        if key != "epochs" or _epochs_differ(members):
            tell(trained, key, absent=False, by=curves)
    same_in = [key for key in ("method", "backbone", "pretrained", "classes") if key in values]
    for numbers in values.groupby(same_in, dropna=False).groups.values():
        known = not any(curves[number].get("config.yaml") for number in numbers)
        for key in (key for key in {**values, "method.ctx_init": None} if key not in (*ELSEWHERE, "epochs")):
            tell(numbers, key, absent=known or "." not in key, by=sources)
    return pd.Series(
        {n: f"{curves[n]['method']} {', '.join(own.values())}".strip() for n, own in parts.items()}, dtype=object
    )


def _epochs_differ(members: pd.DataFrame) -> bool:
    """Whether two curves have other numbers of epochs on the same data and shots."""
    trained = members[column(members, "epochs").fillna(0).astype(int) > 0]
    return bool(len(trained)) and trained.groupby(["backbone", "data", "shots"])["epochs"].nunique().max() > 1


def label_part(key: str, value: Any) -> str:
    """How a value stands in a label: "M=16", "CSC", "end", "init "a photo of a"", "lr=0.002", "augmentation=none"."""
    if key == "config.yaml":
        return "without its config.yaml"
    name = "M" if key == "n_ctx" else key.removeprefix("method.").removeprefix("optimizer.")
    if value is None:
        return f"{name}={NOTHING}"
    alone = {
        "class_specific": "CSC" if value else "unified",
        "class_token_position": value,
        "method.ctx_init": f'init "{value}"' if value else "random init",
        "epochs": f"{value} epoch{'s' * (value != 1)}",
        "optimizer.name": value,
    }
    return str(alone.get(key, f"{name}={value}"))
