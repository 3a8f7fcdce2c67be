"""Which runs are averaged (cells), and which averages make one curve."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from coop import schedule
from coop.report.records import RUNS_OWN, is_zero_shot, keys_of

# THE RULE. Runs that agree in every key (all but the seed) are one cell: their average over seeds.
# Cells that agree in every key but these make one curve: they are what a data set or its number of shots decides.
# (Tip-Adapter's authors choose its hyper-parameters for each data set.) Names that end with a dot are prefixes.
ALONG = (
    *("dataset", "shots", "split", "num_classes", "n_test", "trainable_params", "dataset.", "method.template"),
    *("method.alpha", "method.beta", "method.alpha_max", "method.beta_max"),
)
BY_SHOTS = "trainable_params"  # Tip-Adapter-F trains a cache of its shots; the others of ALONG go with the data set
PUBLISHED = "published"  # the rule for epochs that a method's authors state
# Keys that labels name wherever two curves of a report differ in them, of whatever methods.
ALWAYS_SAID = ("n_ctx", "method.ctx_init", "class_specific", "class_token_position", "epochs", "optimizer.lr")
# Keys that never stand in a label: they have columns, rows or tables of their own.
ELSEWHERE = ("dataset", "classes", "shots", "backbone", "pretrained", "method", "trained_on", "trained_classes")
# Two accuracies this close are the same, computed on machines that round differently.
SAME = 1e-6


@dataclass
class Curves:
    """Averages that may stand in one row or on one line.

    Attributes:
        table: a row for each curve, in the order in which they are shown: the keys that its cells agree in,
            "backbone" with its weights, "zero_shot" (whether it is), "source" (what it was trained on, of a transfer),
            "label", and its "parts" by key.
        points: a row for each curve, test set ("data"), number of shots and seed: "acc", "cell".
    """

    table: pd.DataFrame
    points: pd.DataFrame

    def of(self, **values: Any) -> "Curves":
        """Those with these values in the columns of `table`."""
        chosen = self.table
        for name, value in values.items():
            chosen = chosen[chosen[name] == value]
        return Curves(chosen, self.points[self.points["curve"].isin(chosen.index)])

    def average(self, data: Sequence[str]) -> pd.DataFrame:
        """Averages over these test sets, of each seed that all of them have; then over seeds.

        Returns:
            "n" (seeds), "mean" and "sd" (NaN with one seed), indexed by curve and shots.
        """
        points = self.points[self.points["data"].isin(data)]
        wide = points.pivot_table("acc", ["curve", "shots", "seed"], "data", sort=False).reindex(columns=list(data))
        return mean_sd(wide.dropna().mean(axis=1), ["curve", "shots"])


def mean_sd(values: pd.Series, by: Any) -> pd.DataFrame:
    """Number, mean and sample deviation (NaN for a single value) of groups."""
    return values.groupby(by).agg(n="size", mean="mean", sd="std")


def data_name(dataset: str, classes: str) -> str:
    """ "caltech101", "caltech101 (base)"."""
    return dataset if classes == "all" else f"{dataset} ({classes})"


def backbone_name(backbone: str, pretrained: str | None) -> str:
    """The backbone with its weights: "RN50-quickgelu (openai)"."""
    return f"{backbone} ({pretrained})" if pretrained else backbone


def shots_text(shots: int) -> str:
    """ "1 shot", "16 shots", "all images"."""
    return "all images" if shots < 1 else f"{shots} shot{'s' if shots > 1 else ''}"


def sort_shots(shots: Sequence[int]) -> list[int]:
    """Ascending; "all images" (-1) last."""
    return sorted(set(shots), key=lambda number: (number < 0, number))


def describe(keys: Any) -> str:
    """A setting in a few words."""
    shots = "" if is_zero_shot(keys["method"]) else f", {shots_text(keys['shots'])}"
    return f"{data_name(keys['dataset'], keys['classes'])}, {keys['backbone']}, {keys['method']}{shots}"


def column(frame: pd.DataFrame, name: str) -> pd.Series:
    """A column; all None where no run has the key."""
    return frame[name] if name in frame else pd.Series(None, index=frame.index, dtype=object)


def numbered(frame: pd.DataFrame, names: Sequence[str]) -> pd.Series:
    """A number for each row: the same where rows agree in all of these columns; in order of first appearance."""
    telling = [name for name in names if frame[name].nunique(dropna=False) > 1]
    if not telling:
        return pd.Series(0, index=frame.index)
    return frame.groupby(telling, sort=False, dropna=False).ngroup()


def make_cells(runs: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """Average over seeds what is the same in everything else.

    Returns:
        The cells (a row each: their keys, "transfer", "data", "n", "mean", "sd", "seeds", "zero_shot", "gain"); their
        scores (a row for each cell and seed); and warnings about runs with the same setting and seed, of which the
        first counts.
    """
    runs = _settle_split_seeds(runs.reset_index(drop=True))
    keys = keys_of(runs)
    runs["cell"] = numbered(runs, [*keys, "transfer"])
    runs["gain"] = runs["acc"] - runs["zero_shot"]
    scores = runs.sort_values(["cell", "seed"], kind="stable").drop_duplicates(["cell", "seed"])
    warnings = _disagreements(runs)
    cells = runs.groupby("cell").first()[[*keys, "transfer"]].astype(dict.fromkeys(keys, object))
    cells = cells.where(cells.notna(), None)
    cells["by_rule"] = runs["by_rule"].eq(True).groupby(runs["cell"]).any()
    by_cell = scores.groupby("cell")
    cells["zero_shot"], cells["gain"] = by_cell["zero_shot"].mean(), by_cell["gain"].mean()
    cells["gain_sd"] = by_cell["gain"].std()
    # Where nothing is random and all is the same, seeds say nothing.
    spread = by_cell["acc"].agg("max") - by_cell["acc"].agg("min")
    fixed = cells.index[is_zero_shot(cells["method"]).astype(bool) & (spread <= SAME)]
    scores = scores[~scores["cell"].isin(fixed) | ~scores.duplicated("cell")]
    scores = scores.assign(seed=scores["seed"].mask(scores["cell"].isin(fixed), runs["seed"].min()))
    cells = cells.join(mean_sd(scores["acc"], scores["cell"]))
    cells["seeds"] = scores["seed"].astype(str).groupby(scores["cell"]).agg(" ".join)
    cells["data"] = [data_name(*names) for names in zip(cells["dataset"], cells["classes"], strict=True)]
    return cells, scores[["cell", "seed", "acc"]], warnings


def _settle_split_seeds(runs: pd.DataFrame) -> pd.DataFrame:
    """Tell a split that is drawn anew with every run's seed from one that has the same seed in all runs.

    Where a run's seed equals the split's, either may be meant; the other runs on the same data set tell.
    """
    if "dataset.seed" not in runs:
        return runs.copy()
    source = numbered(runs, ["dataset", *(key for key in runs if key.startswith("dataset.") and key != "dataset.seed")])
    seeds = runs["dataset.seed"].copy()
    for _, same in seeds.groupby(source):
        fixed = set(same) - {RUNS_OWN, None}
        if len(fixed) == 1:
            settled = same.index[(same == RUNS_OWN) & (runs.loc[same.index, "seed"] == next(iter(fixed)))]
            seeds[settled] = next(iter(fixed))
    return runs.assign(**{"dataset.seed": seeds})


def _disagreements(runs: pd.DataFrame) -> list[str]:
    """Warnings about runs of one setting and seed that came to different results."""
    by_seed = runs.groupby(["cell", "seed"])["acc"]
    twins = runs[by_seed.transform("max") - by_seed.transform("min") > SAME]
    warnings = []
    for (_, seed), same in twins.groupby(["cell", "seed"]):
        first, what = same.iloc[0], describe(same.iloc[0])
        folder = first["path"].rpartition("/")[0]
        if is_zero_shot(first["method"]):
            warnings.append(
                f"{what}: zero-shot accuracy is not the same in all {len(same)} runs of seed {seed} "
                f"({100 * same['acc'].min():.2f} to {100 * same['acc'].max():.2f}); the one of {folder} stands in the "
                "tables"
            )
        else:
            others = same[(same["acc"] - first["acc"]).abs() > SAME]
            listed = zip(others["path"], others["acc"], strict=True)
            left_out = ", ".join(f"{path.rpartition('/')[0]} ({100 * acc:.2f})" for path, acc in listed)
            warnings.append(
                f"{what}, seed {seed}: computed more than once with different results; "
                f"{folder} ({100 * first['acc']:.2f}) counts, left out: {left_out}"
            )
    return warnings


def make_curves(cells: pd.DataFrame, scores: pd.DataFrame, keys: Sequence[str], *, transfer: bool = False) -> Curves:
    """Join cells that differ in nothing but what the data set and the number of shots decide.

    The rule: two cells are on one curve if they agree in all keys but `ALONG` and the number of epochs, and if their
    epochs follow one rule: `PUBLISHED` where the config left them to the method (or they are what it would have been),
    else one number. A cell that follows both is on both curves. Where one data set has several values of a key in
    `ALONG` (two splits, two templates), that key tells curves apart as the others do.

    Args:
        cells, scores: of `make_cells`.
        keys: the columns of `cells` that say what was run.
        transfer: of tests on other data; base and new classes are two test sets of one curve there, not two problems.
    """
    along = (*ALONG, "classes") if transfer else ALONG
    fixed = [key for key in keys if key != "epochs" and not _is_along(key, along)]
    members = cells.reset_index(names="cell").assign(rule=_epochs_rules(cells))
    members["base"] = numbered(members, fixed)
    members = _with_both_rules(members)
    members["curve"] = numbered(members, ["base", "rule"])
    split = {}
    for key in (key for key in keys if _is_along(key, along) and key not in ("dataset", "shots", "classes")):
        place = ["curve", "data", "shots"] if key == BY_SHOTS else ["curve", "data"]
        several = members.groupby(place)[key].nunique(dropna=False).gt(1).groupby("curve").any()
        if several.any():
            split[key] = members[key].where(members["curve"].map(several), None)
    values = members[["curve", "rule", *fixed]].assign(**split)
    members["curve"] = numbered(values, ["curve", *split])
    values = values.assign(curve=members["curve"]).drop_duplicates("curve").set_index("curve")
    table, order = _shown(values, members)
    points = members[["curve", "cell", "data", "shots"]].merge(scores, on="cell")
    return Curves(table, points.assign(curve=points["curve"].map(order), shots=points["shots"].astype(int)))


def _is_along(key: str, along: Sequence[str]) -> bool:
    return key in along or any(key.startswith(prefix) for prefix in along if prefix.endswith("."))


def published_epochs(dataset: str, shots: int) -> int:
    """The paper's rule with its exception: ImageNet always 50 (CoOp, section 4.1)."""
    return 50 if dataset == "imagenet" else schedule.epochs_by_shots(shots)


def _epochs_rules(cells: pd.DataFrame) -> list[str]:
    """Of each cell: `PUBLISHED`, or its number of epochs; "" where nothing is trained in epochs."""
    trained_on = column(cells, "trained_on").fillna(cells["dataset"])
    places = zip(column(cells, "epochs"), cells["by_rule"], trained_on, cells["shots"], strict=True)
    return [
        "" if not epochs else PUBLISHED if by_rule or epochs == published_epochs(data, shots) else str(epochs)
        for epochs, by_rule, data, shots in places
    ]


def _with_both_rules(members: pd.DataFrame) -> pd.DataFrame:
    """Cells of the published rule stand on a curve of one number of epochs too, where they have just that number."""
    fixed = members.loc[~members["rule"].isin(["", PUBLISHED]), ["base", "data", "rule"]].drop_duplicates()
    if fixed.empty:
        return members
    published = members[members["rule"] == PUBLISHED]
    both = published.drop(columns="rule").merge(fixed, on=["base", "data"])
    both = both[both["epochs"].astype(str) == both["rule"]]
    # A curve all of whose cells are on another is none of its own.
    own = published.groupby("base")["cell"].transform(lambda same: not set(same) <= set(both["cell"]))
    return pd.concat([members[members["rule"] != PUBLISHED], published[own.astype(bool)], both], ignore_index=True)


def _shown(values: pd.DataFrame, members: pd.DataFrame) -> tuple[pd.DataFrame, dict[int, int]]:
    """The table of curves in the order in which they are shown; and the new number of each curve.

    Zero-shot stands first, then by method, M, and the other choices of a method.
    """
    zero_shot = is_zero_shot(values["method"]).astype(bool)
    place = [~zero_shot, values["method"]]
    for key, absent in (("n_ctx", 0), ("class_specific", False), ("class_token_position", "")):
        place.append(column(values, key).fillna(absent))
    rank = pd.concat([*place, (values["rule"] != PUBLISHED)], axis=1, keys=range(6)).sort_values(list(range(6)))
    values = values.loc[rank.index]
    shown = values.assign(
        backbone=[backbone_name(*n) for n in zip(values["backbone"], column(values, "pretrained"), strict=True)],
        zero_shot=zero_shot,
        classes=column(values, "classes").fillna("all"),
        parts=label_parts(values, members),
    )
    shown["label"] = [label(*curve) for curve in zip(shown["method"], shown["parts"], strict=True)]
    if "trained_on" in values:
        names = zip(values["trained_on"], values["trained_classes"], strict=True)
        shown["source"] = [data_name(*pair) if pair[0] else None for pair in names]
    return shown.reset_index(drop=True), {old: new for new, old in enumerate(values.index)}


def label(method: str, parts: dict[str, str], without: Sequence[str] = ()) -> str:
    """The method, and what tells this curve from the others; some keys may stand elsewhere."""
    return " ".join([method, ", ".join(part for key, part in parts.items() if key not in without)]).strip()


def label_parts(values: pd.DataFrame, members: pd.DataFrame) -> list[dict[str, str]]:
    """What tells curves apart, by key.

    All trained curves name a key of `ALWAYS_SAID` in which any two of them differ; those of one method on one backbone
    name every key in which they differ, or that only some of them have.
    """
    curves = [{key: v for key, v in row.items() if v is not None} for row in values.to_dict("records")]
    for curve, number in zip(curves, values.index, strict=True):
        if "n_ctx" in curve and "config.yaml" not in curve:
            curve.setdefault("method.ctx_init", None)  # known, for the config leaves it out
        numbers = sorted(filter(None, column(members, "epochs")[members["curve"] == number]))
        if numbers:
            curve["epochs"] = " to ".join(dict.fromkeys(map(str, (numbers[0], numbers[-1]))))
    parts: list[dict[str, str]] = [{} for _ in curves]
    trained = [index for index, curve in enumerate(curves) if not is_zero_shot(curve["method"])]
    for key in ALWAYS_SAID:
        having = [index for index in trained if key in curves[index]]
        if _epochs_differ(members) if key == "epochs" else len({curves[index][key] for index in having}) > 1:
            _tell(curves, parts, having, key)
    alike: dict[tuple, list[int]] = {}
    for index, curve in enumerate(curves):
        alike.setdefault(tuple(curve.get(k) for k in ("method", "backbone", "pretrained", "classes")), []).append(index)
    for same in alike.values():
        known = not any("config.yaml" in curves[index] for index in same)
        for key in dict.fromkeys(key for index in same for key in curves[index] if key not in ELSEWHERE):
            found = {curves[index].get(key) for index in same} - (set() if known or "." not in key else {None})
            if len(found) > 1 and key != "epochs":
                _tell(curves, parts, same, "epochs" if key == "rule" else key)
    return parts


def _epochs_differ(members: pd.DataFrame) -> bool:
    """Whether two curves have other numbers of epochs on the same data and shots."""
    trained = members[column(members, "epochs").fillna(0).astype(int) > 0]
    return bool(len(trained)) and trained.groupby(["backbone", "data", "shots"])["epochs"].nunique().max() > 1


def _tell(curves: Sequence[dict[str, Any]], parts: list[dict[str, str]], indices: Sequence[int], key: str) -> None:
    for index in indices:
        if key in curves[index]:
            parts[index][key] = label_part(key, curves[index][key])
        elif key == "method.template":
            parts[index][key] = "template of the data set"
        elif not (_is_along(key, ALONG) or key == "config.yaml"):
            known = "." in key and "config.yaml" not in curves[index]
            parts[index][key] = label_part(key, "null") if known else f"{key} not recorded"


def label_part(key: str, value: Any) -> str:
    """How a value stands in a label: "M=16", "CSC", "end", "init "a photo of a"", "lr=0.002", "augmentation=none"."""
    if key == "class_specific":
        return "CSC" if value else "unified"
    if key == "method.ctx_init":
        return f'init "{value}"' if value else "random init"
    if key in ("class_token_position", "optimizer.name"):
        return str(value)
    if key in ("epochs", "config.yaml"):
        return f"{value} epochs" if key == "epochs" else "without its config.yaml"
    name = "M" if key == "n_ctx" else key.removeprefix("method.").removeprefix("optimizer.")
    return f"{name}={value}"
