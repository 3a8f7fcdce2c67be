"""The leaderboard: all methods of one setting ranked, with intervals, paired tests, costs and published figures.

Three kinds of boards, each for one backbone and one number of shots: few-shot learning (the average over data sets),
base-to-new (the harmonic mean of the averages on base and on new classes), and transfer (the average over targets).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pandas as pd

from coop.report import significance
from coop.report.groups import NOTHING, SAME, Curves, column, shots_text
from coop.report.published import CONFIDENCES, MARKS
from coop.report.records import BASE_TO_NEW, COSTS, METRICS, TRANSFER
from coop.report.study import Study
from coop.report.tables import Table, average_name, mean_sd_n, panels, percent, places, points
from coop.runs.base_to_new import harmonic_mean

READING = (
    "Mean accuracy in % ± half of its 95 % t-interval over seeds (number of seeds). Differences are taken seed by "
    "seed, on the same splits, with their 95 % intervals: * larger than chance by a paired t-test, ** by Wilcoxon's "
    f"signed-rank test too (it needs {significance.FEWEST} seeds), both at 5 % after Holm's correction. "
    "Trained numbers, times, peak memory and the metrics in % (ECE, AUROC, FPR95) are means over the runs. "
)
LETTERS = {"validation images": "V", "image tower": "T", "class descriptions": "D", "unlabeled images": "U"}
CATEGORIES = f"Uses: {', '.join(f'{letter} {what}' for what, letter in LETTERS.items())}. "


def _letters(uses: str) -> str:
    return " ".join(LETTERS.get(what, what) for what in uses.split(", ")) or "none"


def _short(number: float) -> str:
    return f"{number:.3g}" if number < 100 else f"{number:,.0f}"


# The last columns, where any run has them: what stands in them, and how.
MEANS = {
    "trained": ("trainable_params", str),
    "encode s": ("encode_seconds", _short),
    "fit s": ("fit_seconds", _short),
    "test s": ("test_seconds", _short),
    "step ms": ("step_seconds", lambda seconds: _short(1000 * seconds)),
    "peak MB": ("peak_memory_mb", _short),
    "uses": ("uses", _letters),
    **{name.upper(): (name, percent) for name in METRICS},
}


@dataclass
class Board:
    """What one leaderboard ranks."""

    family: str  # what it has in common with the boards of other numbers of shots
    title: str
    curves: Curves  # the methods at this number of shots; zero-shot among them
    shots: int
    scores: dict[str, pd.DataFrame]  # by column, (curves, seeds); the last one ranks; who lacks any has no rank
    places: dict[str, tuple[str, list[str]]]  # (name, data sets) of the columns that may have published figures
    note: str = ""  # what else has to be known
    ranks: pd.Series | None = None  # mean rank over the data sets, where there are several
    frame: pd.DataFrame = field(default_factory=pd.DataFrame)  # of `_figures`

    @property
    def name(self) -> str:
        """The name of its files."""
        return f"leaderboard_{self.family}_{shots_text(self.shots).replace(' ', '_')}"


def boards(study: Study, *, own: bool = True) -> list[Board]:
    """All leaderboards of a study, with their figures in `frame`; without `own` those of tests on other data alone."""
    found: list[Board] = []
    for number, (panel, curves) in enumerate(panels(study) if own else (), 1):
        found += [_few_shot(str(number), panel, curves.at_shots(shots), shots) for shots in curves.shots()]
    for kind, build in ((BASE_TO_NEW, _base_to_new), (TRANSFER, _transfer)):
        curves = study.curves.of(kind=kind)
        trained = curves.of(zero_shot=False).table.groupby(["source", "backbone"], sort=False)
        for number, (source, backbone) in enumerate(trained.groups, 1):
            same = curves.of(backbone=backbone)
            same = same.at(same.table.index[same.table["source"].eq(source) | same.table["zero_shot"]])
            for shots in same.shots():
                found += build(str(number), f"{backbone}, {shots_text(shots)}", same.at_shots(shots), shots, source)
    for board in found:
        board.frame = _figures(study, board)
    return found


def _by_seed(curves: Curves, data: Sequence[str]) -> pd.DataFrame:
    """(curves, seeds); zero-shot that knows no seed has the same figure with all of them."""
    scores = curves.by_seed(data).droplevel("shots").unstack("seed")
    fixed = curves.table["zero_shot"].reindex(scores.index) & scores.count(axis=1).eq(1)
    return scores.where(~fixed, scores.ffill(axis=1).bfill(axis=1), axis=0).reindex(curves.table.index)


def _few_shot(number: str, panel: str, curves: Curves, shots: int) -> Board:
    name, data = places(curves)[-1]
    board = Board(number, f"{panel}, {shots_text(shots)}: {name}", curves, shots, {}, {"accuracy": (name, data)})
    board.scores["accuracy"] = _by_seed(curves, data)
    if len(data) > 1:
        singles = pd.concat([_by_seed(curves, [place]).mean(axis=1) for place in data], axis=1)
        board.ranks = singles.dropna().rank(ascending=False, method="min").mean(axis=1)
    return board


def _base_to_new(number: str, place: str, curves: Curves, shots: int, _: str) -> Iterator[Board]:
    names = sorted({name.rpartition(" (")[0] for name in places(curves)[-1][1]})
    name = names[0] if len(names) == 1 else average_name(names)
    half = {part: [f"{dataset} ({part})" for dataset in names] for part in ("base", "new")}
    scores = {part: _by_seed(curves, data) for part, data in half.items()}
    of_averages = harmonic_mean(*scores.values())
    if len(names) > 1:
        pairs = zip(*half.values(), strict=True)
        each = [harmonic_mean(*(_by_seed(curves, [one]) for one in pair)) for pair in pairs]
        scores["average of H"] = sum(each) / len(each)
    scores["H of the averages" if len(names) > 1 else "H"] = of_averages
    where = {part: (data[0] if len(data) == 1 else name, data) for part, data in half.items()}
    note = "Trained on base classes. H is the harmonic mean of the accuracies on base and on new classes. "
    yield Board(f"base_to_new_{number}", f"{place}: base to new, {name}", curves, shots, scores, where, note)


def _transfer(number: str, place: str, curves: Curves, shots: int, source: str) -> Iterator[Board]:
    targets = [name for name in curves.of(zero_shot=False).points["data"].unique() if name != source]
    where = {f"{source} (source)": [source], **{name: [name] for name in targets}}
    where |= {f"average of {len(targets)} targets": targets} if len(targets) > 1 else {}
    last = list(where)[-1]
    if targets:
        scores = {head: _by_seed(curves, data) for head, data in where.items()}
        title = f"{place}: trained on {source}, tested on others"
        yield Board(f"transfer_{number}", title, curves, shots, scores, {last: (last, where[last])})


def _figures(study: Study, board: Board) -> pd.DataFrame:
    """A row for each curve, the best first: figures as fractions, and what it cost."""
    complete = pd.concat([scores.notna().any(axis=1) for scores in board.scores.values()], axis=1).all(axis=1)
    frame = board.curves.table[["label", "method", "backbone", "zero_shot"]].assign(shots=board.shots)
    frame = frame.assign(**{head: scores.mean(axis=1) for head, scores in board.scores.items()})
    scores = list(board.scores.values())[-1]
    found = scores.agg(["count", "mean", "std"], axis=1)
    fixed = frame["zero_shot"] & (found["std"] < SAME)
    half = significance.half_width(found["std"], found["count"]).mask(fixed)
    frame = frame.assign(n=found["count"].mask(fixed, 1), mean=found["mean"], half=half)
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

    def extent(params: pd.Series) -> str:
        found = sorted(params.dropna())
        return " to ".join(dict.fromkeys(f"{number:,}" for number in (*found[:1], *found[-1:])))

    points = board.curves.of(zero_shot=False).points.drop_duplicates(["curve", "setting"])[["curve", "setting"]]
    members = points.join(study.settings, on="setting")
    by_curve = members.assign(trainable_params=column(members, "trainable_params")).groupby("curve")
    params, uses = by_curve["trainable_params"].agg(extent), by_curve["uses"].first()
    return by_curve[[*COSTS, *METRICS]].mean().assign(trainable_params=params, uses=uses)


def _published(study: Study, board: Board) -> pd.DataFrame:
    """The surest published figure of each curve: of H, the harmonic mean of those on base and on new classes."""
    found = []
    for where in board.places.values():
        figures = study.beside(board.curves, [where])
        figures = figures.sort_values("confidence", key=lambda names: names.map(CONFIDENCES.index), kind="stable")
        figures = figures.drop_duplicates("curve").set_index("curve")[["accuracy_percent", "confidence", "source"]]
        found.append(figures.rename(columns={"accuracy_percent": "published"}).astype({"published": float}))
    if len(found) == 1:
        return found[0]
    base, new = (figures.loc[found[0].index.intersection(found[1].index)] for figures in found)
    confidence = [max(pair, key=CONFIDENCES.index) for pair in zip(base["confidence"], new["confidence"], strict=True)]
    return new.assign(published=harmonic_mean(base["published"], new["published"]), confidence=confidence)


def board_table(board: Board, *, brief: bool = False) -> Table:
    """A leaderboard as it is shown; `brief`: without costs, for a terminal."""
    frame = board.frame
    shown = pd.DataFrame({"rank": frame["rank"].map("{:.0f}".format, "ignore"), "method": frame["label"]})
    if "mean rank" in frame:
        shown["mean rank"] = frame["mean rank"].map("{:.1f}".format, "ignore")
    *others, last = board.scores
    for head in others:
        shown[head] = frame[head].map(percent)
    shown[last] = [mean_sd_n(*row) for row in frame[["mean", "half", "n"]].itertuples(index=False)]
    for name, head in (("best", "to the best"), ("coop", "to CoOp")):
        if f"{name}_difference" in frame:
            keys = [f"{name}_{key}" for key in ("difference", "half", "p", "p_wilcoxon")]
            shown[head] = [_difference(*row) for row in frame[keys].itertuples(index=False)]
    figures = zip(frame["published"], frame["confidence"], strict=True)
    shown["published"] = [NOTHING if pd.isna(value) else f"{value:.2f} {MARKS[sure]}" for value, sure in figures]
    for head, (key, form) in MEANS.items():
        if not brief and frame[key].notna().any():
            shown[head] = frame[key].map(form, "ignore")
    note = board.note + _unranked(board) + _unequal(board)
    return Table(board.name, board.title, shown.fillna(NOTHING), 2, note.strip(), blocks=False)


def _difference(difference: float, half: float, p: float, p_wilcoxon: float) -> str:
    if pd.isna(difference):
        return NOTHING
    stars = "" if not p < significance.LEVEL else " **" if p_wilcoxon < significance.LEVEL else " *"
    return f"{points(100 * difference)}{'' if pd.isna(half) else f' ± {percent(half)}'}{stars}"


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
