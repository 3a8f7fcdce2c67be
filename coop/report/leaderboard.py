"""The leaderboard: all methods of one setting ranked, with intervals, paired tests, costs and published figures.

Three kinds of boards, each for one backbone and one number of shots: few-shot learning (the average over data sets),
base-to-new (the harmonic mean of the averages on base and on new classes), and transfer (the average over targets).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pandas as pd

from coop.report import significance
from coop.report.groups import NOTHING, SAME, Curves, column, shots_text
from coop.report.published import beside
from coop.report.records import BASE_TO_NEW, COSTS, METRICS, TRANSFER
from coop.report.study import Study
from coop.report.tables import MARKS, Table, average_name, panels, percent, places, points
from coop.runs.base_to_new import harmonic_mean

LETTERS = {"validation images": "V", "image tower": "T", "class descriptions": "D", "unlabeled images": "U"}
HEADS = {
    "trainable_params": "trained",
    "encode_seconds": "encode s",
    "fit_seconds": "fit s",
    "test_seconds": "test s",
    "step_seconds": "step ms",
    "peak_memory_mb": "peak MB",
    "uses": "uses",
    "ece": "ECE",
    "auroc": "AUROC",
    "fpr95": "FPR95",
}
READING = (
    "Mean accuracy in % ± half of its 95 % t-interval over seeds (number of seeds). Differences are taken seed by "
    "seed, on the same splits, with their 95 % intervals: * larger than chance by a paired t-test, ** by Wilcoxon's "
    f"signed-rank test too (it needs {significance.FEWEST} seeds), both at 5 % after Holm's correction. "
    "Trained numbers, times, peak memory and the metrics in % (ECE, AUROC, FPR95) are means over the runs. "
)
CATEGORIES = f"Uses: {', '.join(f'{letter} {what}' for what, letter in LETTERS.items())}. "


@dataclass
class Board:
    """What one leaderboard ranks.

    Attributes:
        family: what it has in common with the boards of other numbers of shots.
        title: what is compared.
        curves: the methods; zero-shot among them.
        shots: training images per class.
        scores: by the name of a column, (curves, seeds); the last one ranks. A curve that lacks any has no rank.
        places: (name, data sets) of the columns that may have published figures, by column.
        ranks: mean rank over the data sets, where there are several.
        note: what else has to be known.
    """

    family: str
    title: str
    curves: Curves
    shots: int
    scores: dict[str, pd.DataFrame]
    places: dict[str, tuple[str, list[str]]]
    ranks: pd.Series | None = None
    note: str = ""
    frame: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def name(self) -> str:
        """The name of its files."""
        return f"leaderboard_{self.family}_{shots_text(self.shots).replace(' ', '_')}"


def boards(study: Study, *, own: bool = True) -> list[Board]:
    """All leaderboards of a study, with their figures in `frame`; without `own` those of tests on other data alone."""
    found = [*(_few_shot(study) if own else ()), *_base_to_new(study), *_transfers(study)]
    for board in found:
        board.frame = _figures(study, board)
    return found


def _by_seed(curves: Curves, data: Sequence[str], shots: int) -> pd.DataFrame:
    """(curves, seeds) at one number of shots; zero-shot that knows no seed has the same figure with all of them."""
    scores = curves.by_seed(data)
    scores = scores[scores.index.get_level_values("shots").isin([0, shots])].droplevel("shots").unstack("seed")
    fixed = curves.table["zero_shot"].reindex(scores.index) & scores.count(axis=1).eq(1)
    return scores.where(~fixed, scores.ffill(axis=1).bfill(axis=1), axis=0).reindex(curves.table.index)


def _few_shot(study: Study) -> Iterator[Board]:
    for number, (panel, curves) in enumerate(panels(study), 1):
        for shots in curves.shots():
            here = _at(curves, shots)
            name, data = places(here)[-1]
            ranks = None
            if len(data) > 1:
                singles = [_by_seed(here, [place], shots).mean(axis=1) for place in data]
                ranks = pd.concat(singles, axis=1).dropna().rank(ascending=False, method="min").mean(axis=1)
            title = f"{panel}, {shots_text(shots)}: {name}"
            scores = {"accuracy": _by_seed(here, data, shots)}
            yield Board(str(number), title, here, shots, scores, {"accuracy": (name, data)}, ranks)


def _at(curves: Curves, shots: int) -> Curves:
    """The curves that have this number of shots, and zero-shot."""
    own = curves.points[curves.points["shots"].isin([0, shots])]
    return Curves(curves.table.loc[sorted(own["curve"].unique())], own)


def _base_to_new(study: Study) -> Iterator[Board]:
    for number, backbone in enumerate(dict.fromkeys(study.curves.of(kind=BASE_TO_NEW).table["backbone"]), 1):
        curves = study.curves.of(kind=BASE_TO_NEW, backbone=backbone)
        for shots in curves.shots():
            here = _at(curves, shots)
            names = sorted({name.rpartition(" (")[0] for name in places(here)[-1][1]})
            name = names[0] if len(names) == 1 else average_name(names)
            half = {part: [f"{dataset} ({part})" for dataset in names] for part in ("base", "new")}
            scores = {part: _by_seed(here, data, shots) for part, data in half.items()}
            of_averages = harmonic_mean(*scores.values())
            if len(names) > 1:
                pairs = zip(*half.values(), strict=True)
                each = [harmonic_mean(*(_by_seed(here, [one], shots) for one in pair)) for pair in pairs]
                scores["average of H"] = sum(each) / len(each)
            scores["H of the averages" if len(names) > 1 else "H"] = of_averages
            where = {part: (data[0] if len(data) == 1 else name, data) for part, data in half.items()}
            title = f"{backbone}, {shots_text(shots)}: base to new, {name}"
            note = "Trained on base classes. H is the harmonic mean of the accuracies on base and on new classes. "
            yield Board(f"base_to_new_{number}", title, here, shots, scores, where, None, note)


def _transfers(study: Study) -> Iterator[Board]:
    table = study.curves.of(kind=TRANSFER).table
    trained = table[~table["zero_shot"]]
    for number, (source, backbone) in enumerate(trained.groupby(["source", "backbone"], sort=False).groups, 1):
        same = table["backbone"].eq(backbone) & (table["source"].eq(source) | table["zero_shot"])
        curves = study.curves.at(table.index[same])
        own = curves.of(zero_shot=False).points
        targets = [name for name in own["data"].unique() if name != source]
        where = {f"{source} (source)": [source], **{name: [name] for name in targets}}
        where |= {f"average of {len(targets)} targets": targets} if len(targets) > 1 else {}
        last = list(where)[-1]
        for shots in curves.shots() if targets else ():
            here = _at(curves, shots)
            scores = {head: _by_seed(here, data, shots) for head, data in where.items()}
            title = f"{backbone}, {shots_text(shots)}: trained on {source}, tested on others"
            yield Board(f"transfer_{number}", title, here, shots, scores, {last: (last, where[last])})


def _figures(study: Study, board: Board) -> pd.DataFrame:
    """A row for each curve, the best first: figures as fractions, and what it cost."""
    complete = pd.concat([scores.notna().any(axis=1) for scores in board.scores.values()], axis=1).all(axis=1)
    table = board.curves.table
    frame = table[["label", "method", "backbone", "zero_shot"]].assign(shots=board.shots)
    for head, scores in board.scores.items():
        found = scores.agg(["count", "mean", "std"], axis=1).set_axis(["n", "mean", "sd"], axis=1)
        frame = frame.assign(**{head: found["mean"]})
    frame = frame.assign(n=found["n"], mean=found["mean"], half=significance.half_width(found["sd"], found["n"]))
    fixed = frame["zero_shot"] & (found["sd"] < SAME)
    frame["half"] = frame["half"].mask(fixed)
    frame["n"] = frame["n"].mask(fixed, 1)
    frame["rank"] = frame["mean"].where(complete).round(9).rank(ascending=False, method="min")
    if board.ranks is not None:
        frame["mean rank"] = board.ranks
    scores = scores.where(complete, axis=0)
    coop = frame[frame["method"].eq("coop") & complete]["mean"]
    for name, means in (("best", frame["mean"].where(complete)), ("coop", coop)):
        if means.notna().any() and complete.sum() > 1:
            against = significance.paired(scores, means.idxmax())
            frame[[f"{name}_{key}" for key in ("n", "difference", "half", "p", "p_wilcoxon")]] = against
    frame = frame.join(_costs(study, board)).join(_published(study, board))
    frame = frame[complete | ~frame["zero_shot"]]  # as it was tested on data that these runs were not
    return frame.sort_values(["rank", "label"], kind="stable")


def _costs(study: Study, board: Board) -> pd.DataFrame:
    """The means of each trained curve over its runs; numbers that go with the data set as "least to most"."""
    trained = board.curves.of(zero_shot=False)
    points = trained.points.drop_duplicates(["curve", "setting"])[["curve", "setting"]]
    members = points.join(study.settings, on="setting")
    costs = members.groupby("curve")[[*COSTS, *METRICS]].mean()
    params = (
        column(members, "trainable_params")
        .groupby(members["curve"])
        .agg(
            lambda own: " to ".join(dict.fromkeys(f"{n:,}" for n in (own.dropna().min(), own.dropna().max()) if n == n))
        )
    )
    return costs.assign(trainable_params=params, uses=members.groupby("curve")["uses"].first())


def _published(study: Study, board: Board) -> pd.DataFrame:
    """The surest published figure of each curve: of H, the harmonic mean of those on base and on new classes."""
    found = []
    for where in board.places.values():
        figures = beside(study.published, study.comparisons, study.settings, board.curves, [where])
        figures = figures.sort_values("confidence", key=lambda names: names.map(list(MARKS).index), kind="stable")
        figures = figures.drop_duplicates("curve").set_index("curve")[["accuracy_percent", "confidence", "source"]]
        found.append(figures.rename(columns={"accuracy_percent": "published"}).astype({"published": float}))
    if len(found) == 1:
        return found[0]
    base, new = (figures.loc[found[0].index.intersection(found[1].index)] for figures in found)
    surest = list(MARKS)
    confidence = [max(pair, key=surest.index) for pair in zip(base["confidence"], new["confidence"], strict=True)]
    return new.assign(published=harmonic_mean(base["published"], new["published"]), confidence=confidence)


def board_table(board: Board, *, brief: bool = False) -> Table:
    """A leaderboard as it is shown; `brief`: without costs, for a terminal."""
    frame = board.frame
    shown = pd.DataFrame({"rank": frame["rank"].map(lambda rank: f"{rank:.0f}", na_action="ignore")})
    shown["method"] = frame["label"]
    if "mean rank" in frame:
        shown["mean rank"] = frame["mean rank"].map("{:.1f}".format, na_action="ignore")
    heads = list(board.scores)
    for head in heads[:-1]:
        shown[head] = frame[head].map(percent)
    shown[heads[-1]] = [_interval(*row) for row in frame[["mean", "half", "n"]].itertuples(index=False)]
    for name, head in (("best", "to the best"), ("coop", "to CoOp")):
        if f"{name}_difference" in frame:
            keys = [f"{name}_{key}" for key in ("difference", "half", "p", "p_wilcoxon")]
            shown[head] = [_difference(*row) for row in frame[keys].itertuples(index=False)]
    shown["published"] = [
        NOTHING if pd.isna(value) else f"{value:.2f} {MARKS[sure]}"
        for value, sure in zip(frame["published"], frame["confidence"], strict=True)
    ]
    if not brief:
        costs = pd.DataFrame({head: _cost(key, frame[key]) for key, head in HEADS.items() if frame[key].notna().any()})
        shown = shown.join(costs)
    note = board.note + _unranked(board) + _unequal(board)
    return Table(board.name, board.title, shown.fillna(NOTHING), 2, note.strip(), blocks=False)


def _interval(mean: float, half: float, n: float) -> str:
    if pd.isna(mean):
        return NOTHING
    return f"{percent(mean)}{_half(half)} ({n:.0f})"


def _half(half: float) -> str:
    return "" if pd.isna(half) else f" ± {percent(half)}"


def _difference(difference: float, half: float, p: float, p_wilcoxon: float) -> str:
    if pd.isna(difference):
        return NOTHING
    stars = "" if not p < significance.LEVEL else "**" if p_wilcoxon < significance.LEVEL else "*"
    return f"{points(100 * difference)}{_half(half)} {stars}".strip()


def _cost(key: str, values: pd.Series) -> pd.Series:
    """A column of `HEADS` as text."""
    if key == "uses":
        return values.map(
            lambda text: " ".join(LETTERS.get(what, what) for what in text.split(", ")) or "none", "ignore"
        )
    if key == "trainable_params":
        return values
    if key in METRICS:
        return values.map(percent, "ignore")
    scale = 1000 if key == "step_seconds" else 1
    return values.map(
        lambda value: f"{scale * value:.3g}" if scale * value < 100 else f"{scale * value:,.0f}", "ignore"
    )


def _unranked(board: Board) -> str:
    """Which methods have no rank, and what they lack."""
    texts = []
    for curve in board.frame.index[board.frame["rank"].isna()]:
        wanted = {name for _, data in board.places.values() for name in data}
        own = board.curves.points.loc[board.curves.points["curve"] == curve, "data"]
        absent = sorted(wanted - set(own)) or ["a seed that all data sets have"]
        texts.append(f"{board.frame.loc[curve, 'label']} (lacks {', '.join(absent)})")
    return f"Not ranked, for all methods are compared on the same data sets: {'; '.join(texts)}. " if texts else ""


def _unequal(board: Board) -> str:
    """A word where methods have different seeds."""
    scores = list(board.scores.values())[-1].dropna(how="all")
    same = scores.notna().drop_duplicates().shape[0] <= 1
    return "" if same else "Not all methods have the same seeds: differences are over those that both have. "
