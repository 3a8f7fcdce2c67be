"""The figures of a report, as PNG and SVG, readable without telling colors apart.

A method has the same color, marker and dash in all figures of a report. A figure is as wide as a journal's column, or
as two of them where it has several axes or many lines.
"""

import io
import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from coop.report.groups import shots_text, sort_shots
from coop.report.leaderboard import Board
from coop.report.significance import half_width
from coop.report.study import Study
from coop.report.tables import MINUS, panels, places, shots_column

WIDTH, WIDE = 3.3, 6.9  # inches: one and two columns of a journal
MANY = 8  # lines in axes of one column
DPI = 200
FONT = 7.5
NAME = 26  # characters of a line beside the axes
TOP = 101  # %: an interval of few seeds may go beyond what an accuracy can
LINE = 0.135  # inches of a line of text
# Okabe and Ito's palette without its yellow, which is too light on white; every color has a marker and a dash of its
# own, so that the figures survive a black and white printer.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
DASHES = ("-", "--", "-.", ":")
STYLE = {
    "font.size": FONT,
    "axes.labelsize": FONT,
    "legend.fontsize": FONT - 0.5,
    "xtick.labelsize": FONT - 0.5,
    "ytick.labelsize": FONT - 0.5,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.1,
    "lines.markersize": 3.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "text.parse_math": False,  # names may have a dollar sign
    # The same runs give the same bytes, and text looks the same wherever a figure is opened.
    "svg.hashsalt": "coop",
    "svg.fonttype": "path",
}


@dataclass
class Line:
    """Points on one line of a figure, in percent. Lines of one `style` look the same in all figures of a report."""

    style: int
    label: str
    places: list[float]
    mean: list[float]
    half: list[float]  # of their interval; 0 where there is but one seed
    published: list[tuple[int, float, str]] = field(default_factory=list)  # shots, %, confidence


@dataclass
class Plot:
    """A figure."""

    name: str  # of its files
    section: str  # the heading under which it stands
    title: str
    figure: Figure

    @cached_property
    def files(self) -> dict[str, bytes]:
        """Its files by their suffix: "png" and "svg"."""
        return render(self.figure)


def plots(study: Study, boards: Sequence[Board]) -> list[Plot]:
    """All figures of a report."""
    trained_first = study.curves.table.sort_values("zero_shot", kind="stable")["label"]
    styles = {label: number for number, label in enumerate(dict.fromkeys(trained_first))}
    with matplotlib.rc_context(STYLE):
        return [*_few_shot(study, styles), *_gains(study), *_costs(boards, styles)]


def _few_shot(study: Study, styles: dict[str, int]) -> Iterator[Plot]:
    """One per backbone where there is more than one number of shots: axes for the average, then for each data set."""
    for number, (panel, curves) in enumerate(panels(study), 1):
        if len(curves.shots()) < 2:
            continue
        figures = study.beside(curves, places(curves))
        figures = figures[figures["confidence"] != "low"].groupby(["curve", "data"])
        columns = ["shots", "accuracy_percent", "confidence"]
        published = {place: own[columns].to_numpy().tolist() for place, own in figures}
        found = []
        for name, members in sorted(places(curves), key=lambda place: len(place[1]) == 1):
            lines = []
            for curve, own in curves.average(members).reset_index("shots").groupby("curve"):
                own = own.set_index("shots").loc[sort_shots(own["shots"])]
                half, label = half_width(own["sd"], own["n"]).fillna(0), curves.table["label"][curve]
                interval = (100 * own["mean"]).tolist(), (100 * half).tolist()
                lines.append(Line(styles[label], label, list(own.index), *interval, published.get((curve, name), [])))
            found.append((name, lines))
        title = f"Accuracy by shots, {panel}"
        yield Plot(f"few_shot_{number}", "Few-shot learning", title, accuracy(title, found))


def _gains(study: Study) -> Iterator[Plot]:
    """At the largest number of shots: axes for each curve, or for each data set where curves are more."""
    for number, (panel, curves) in enumerate(panels(study), 1):
        curves = curves.of(zero_shot=False)
        if not (shots := curves.shots()):
            continue
        points = curves.at_shots(shots[-1]).points.drop_duplicates(["curve", "setting"])[["curve", "setting", "data"]]
        points = points.join(study.settings[["gain", "gain_sd", "n"]], on="setting").join(curves.table, on="curve")
        points["half"] = half_width(points["gain_sd"], points["n"]).fillna(0)
        several, bars = ("label", "data") if points["curve"].nunique() < points["data"].nunique() else ("data", "label")
        wide = 100 * points.pivot_table(["gain", "half"], bars, several, sort=False, dropna=False)
        title = f"Gain over zero-shot, {shots_text(shots[-1])}, {panel}"
        yield Plot(f"gain_{number}", "Gain over zero-shot", title, gain(title, wide))


def _costs(boards: Sequence[Board], styles: dict[str, int]) -> Iterator[Plot]:
    """Accuracy against the seconds of fitting, for each kind of leaderboard at its largest number of shots."""
    for board in {board.family: board for board in boards}.values():
        frame = board.frame[board.frame["rank"].notna()]
        timed = frame[frame["fit_seconds"] > 0]
        if len(timed) > 2:
            stars = (100 * frame.loc[frame["zero_shot"], "mean"]).tolist()
            columns = timed["label"], timed["fit_seconds"], 100 * timed["mean"], 100 * timed["half"].fillna(0)
            points = zip(*columns, strict=True)
            methods = [Line(styles[name], name, [seconds], [mean], [half]) for name, seconds, mean, half in points]
            title = f"Accuracy against cost, {board.title}"
            figure = cost(title, methods, stars, list(board.scores)[-1])
            yield Plot(f"cost_{board.family}", "Leaderboard", title, figure)


def accuracy(title: str, found: Sequence[tuple[str, Sequence[Line]]]) -> Figure:
    """Accuracy over training images per class with 95 % bands, zero-shot as a star (the paper's figure 3).

    `found` has (title, lines) of each axes; a line at 0 shots alone is zero-shot. Published figures stand beside a line
    as diamonds of its color: filled if verified, hollow if recalled. Many lines have the room to themselves, and
    numbers at their ends, in the order in which they end in the first axes.
    """
    many = len({line.style for _, lines in found for line in lines}) > MANY
    if many:
        found = [_trained(name, lines) for name, lines in found]
    names = {line.style: line for _, lines in reversed(found) for line in lines}
    names = sorted(names.values(), key=lambda line: -line.mean[-1])
    number = {line.style: f"{index} " if many else "" for index, line in enumerate(names, 1)}
    shots = sort_shots(place for _, lines in found for line in lines for place in line.places)
    published = sorted({sure for _, lines in found for line in lines for *_, sure in line.published}, reverse=True)
    entries = [(Line2D([], [], **_look(line)), number[line.style] + line.label) for line in names]
    entries += [(Line2D([], [], **_diamond(sure, "#555555")), f"published ({sure})") for sure in published]
    figure, grid = _canvas(title, "mean over seeds; bands: 95 % interval", len(found), 2.6 if many else 1.7, entries)
    _name_axes(grid, [name for name, _ in found], "training images per class (shots)", "test accuracy (%)")
    for axes, (_, lines) in zip(grid, found, strict=True):
        for line in lines:
            at, look = [shots.index(number) for number in line.places], _look(line)
            axes.plot(at, line.mean, **look)
            mean, half = np.array(line.mean), np.array(line.half)
            axes.fill_between(at, mean - half, mean + half, color=look["color"], alpha=0.12, lw=0)
            for place, value, sure in line.published:
                axes.plot(shots.index(place), value, **_diamond(sure, look["color"]))
        axes.set_ylim(top=min(axes.get_ylim()[1], TOP))
        axes.set_xticks(range(len(shots)), map(shots_column, shots))
        axes.set_xlim(-0.3, len(shots) - 0.7 + 0.2 * many)
        if many:
            _number_ends(axes, [(line, number[line.style], shots.index(line.places[-1])) for line in lines])
    return figure


def _trained(name: str, lines: Sequence[Line]) -> tuple[str, list[Line]]:
    """Lines without published figures; zero-shot in words."""
    stars = "".join(f", {line.label} {line.mean[0]:.1f}" for line in lines if line.places == [0])
    return name + stars, [replace(line, published=[]) for line in lines if line.places != [0]]


def _number_ends(axes: Axes, ends: Sequence[tuple[Line, str, int]]) -> None:
    """Numbers at the ends of lines, moved apart where they would overlap."""
    low, high = axes.get_ylim()
    ends = sorted(ends, key=lambda end: end[0].mean[-1])
    steps = 0.034 * (high - low) * np.arange(len(ends))
    heights = np.maximum.accumulate([line.mean[-1] for line, *_ in ends] - steps) + steps
    heights = np.minimum(heights, high - steps[::-1])
    for (line, text, place), height in zip(ends, heights, strict=True):
        look = {"color": _look(line)["color"], "va": "center", "size": FONT - 2.5, "annotation_clip": False}
        leader = {"arrowstyle": "-", "color": look["color"], "lw": 0.3, "shrinkA": 0, "shrinkB": 0}
        axes.annotate(text.strip(), (place, line.mean[-1]), (place + 0.16, height), arrowprops=leader, **look)


def _name_axes(grid: Sequence[Axes], titles: Sequence[str], below: str, left: str) -> None:
    """Titles of all, and names of the axes on the lowest row and in the first column."""
    lowest = grid[-1].get_subplotspec().rowspan.start
    for axes, title in zip(grid, titles, strict=True):
        place = axes.get_subplotspec()
        width = 88 // place.get_gridspec().ncols if len(grid) > 1 else 44
        axes.set_title(_wrap(title, width), loc="left", pad=2, size=FONT)
        axes.set_xlabel(below if place.rowspan.start == lowest else "")
        axes.set_ylabel(left if place.is_first_col() else "")


def gain(title: str, wide: pd.DataFrame) -> Figure:
    """Bars of the gain over zero-shot CLIP in percentage points, the largest on top (the paper's figure 4).

    `wide` has "gain" and "half" of its interval, by what makes an axes; a row for each bar.
    """
    wide = wide.loc[wide["gain"].mean(axis=1).sort_values(kind="stable").index]
    names, rows = [_wrap(name) for name in wide.index], range(len(wide))
    height = (0.02 + 0.115 * max(1 + name.count("\n") for name in names)) * len(names) + 0.1
    figure, grid = _canvas(title, "mean over seeds; bars: 95 % interval", wide["gain"].shape[1], height, sharey=True)
    _name_axes(grid, list(wide["gain"]), "gain (percentage points)", "")
    for axes, place in zip(grid, wide["gain"], strict=True):
        values, half = wide["gain"][place], wide["half"][place]
        colors = [COLORS[int(value < 0)] for value in values]
        look = {"edgecolor": colors, "lw": 0.6, "error_kw": {"elinewidth": 0.7, "capsize": 1.2}}
        look["hatch"] = ["////" if value < 0 else None for value in values]
        look["color"] = ["white" if value < 0 else color for value, color in zip(values, colors, strict=True)]
        bars = axes.barh(rows, values, 0.7, xerr=half, **look)
        axes.bar_label(bars, [f"{value:+.1f}".replace("-", MINUS) for value in values], padding=3, size=FONT - 1)
        axes.set_yticks(rows, names)
        axes.set_ylim(-0.6, len(names) - 0.4)
        axes.axvline(0, color="black", lw=0.6)
        axes.margins(x=0.25)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.grid(axis="y", visible=False)
    return figure


def cost(title: str, methods: Sequence[Line], stars: Sequence[float], what: str) -> Figure:
    """Accuracy (`what` is ranked) against the seconds of fitting, which are the place of each method's one point.

    Those that nothing beats in both are joined; of many methods these are named beside the point, too. `stars` are the
    zero-shot accuracies in %.
    """
    methods, many = sorted(methods, key=lambda line: -line.mean[0]), len(methods) > MANY
    entries = [(Line2D([], [], **_look(line) | {"ls": "none"}), line.label) for line in methods]
    zero_shot = f"; zero-shot: {' and '.join(f'{star:.1f}' for star in stars)} %" if stars else ""
    subtitle, height = f"mean over seeds; bars: 95 % interval{zero_shot}", 3.2 if many else 2.2
    figure, (axes,) = _canvas(title, subtitle, 1, height, entries)
    for line in methods:
        axes.errorbar(line.places, line.mean, line.half, elinewidth=0.6, **_look(line) | {"ls": "none", "ms": 5})
    ascending = sorted(methods, key=lambda line: (line.places[0], -line.mean[0]))
    front = [
        line
        for index, line in enumerate(ascending)
        if all(line.mean[0] > faster.mean[0] for faster in ascending[:index])
    ]
    axes.plot([line.places[0] for line in front], [line.mean[0] for line in front], color="#999999", lw=0.8, zorder=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.25 if many else 0.12, y=0.12)  # names stand to the left of their points
    axes.set_ylim(top=min(axes.get_ylim()[1], TOP))
    if many:
        _name_front(axes, front)
    axes.set(xlabel="seconds to fit (mean over data sets and seeds)", ylabel=f"{what} (%)")
    return figure


def _name_front(axes: Axes, front: Sequence[Line]) -> None:
    """Names beside points that each lie higher and further right than the last: all else is below and right of them."""
    low, high = axes.get_ylim()
    for line, higher in zip(front, [*front[1:], None], strict=True):
        near = higher is not None and higher.mean[0] - line.mean[0] < (high - low) / 20
        to = {"xytext": (6, -5), "ha": "left", "va": "top"} if near else {"xytext": (-6, 5), "ha": "right"}
        axes.annotate(_wrap(line.label, 16), (line.places[0], line.mean[0]), textcoords="offset points", **to)


def _look(line: Line) -> dict[str, Any]:
    """Color, marker and dash of a method; zero-shot is a star, with the data set's own prompt a black one."""
    color = COLORS[line.style % len(COLORS)]
    if line.places == [0] and line.label.startswith("zero_shot"):
        return {"color": "black" if line.label == "zero_shot" else color, "marker": "*", "ms": 7, "ls": "none"}
    marker, dash = MARKERS[line.style % len(MARKERS)], DASHES[line.style % len(DASHES)]
    return {"color": color, "marker": marker, "ls": dash}


def _diamond(confidence: str, color: str) -> dict[str, Any]:
    """The look of a published figure: filled where it was verified."""
    fill = color if confidence == "verified" else "white"
    return {"ls": "none", "marker": "d", "ms": 4.5, "mfc": fill, "mec": color, "mew": 0.8, "zorder": 3}


def _wrap(name: str, width: int = NAME) -> str:
    """A name in lines that leave room for the axes."""
    return "\n".join(textwrap.wrap(name, width))


def _canvas(
    title: str, subtitle: str, count: int, height: float, entries: Sequence[tuple[Any, str]] = (), sharey: bool = False
) -> tuple[Figure, list[Axes]]:
    """A figure with `count` axes of about this height (inches), its title above and its legend below them."""
    wide = count > 1 or len(entries) > MANY
    columns = {1: 1, 2: 2, 4: 2}.get(count, 2 if len(entries) > MANY else 3)
    rows, characters = math.ceil(count / columns), 112 if wide else 52  # of a line across the page
    title = f"{_wrap(title, characters)}\n{_wrap(subtitle, characters)}"
    labels = [_wrap(label, characters - 8) for _, label in entries]
    across = max(1, min(4, characters // (max(map(len, labels), default=0) + 8)))
    legend = math.ceil(len(labels) / across) * max((1 + label.count("\n") for label in labels), default=0)
    around = LINE * (legend + 1 + title.count("\n")) + 0.4
    figure = Figure(figsize=(WIDE if wide else WIDTH, rows * (height + 0.3) + around), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.03, w_pad=0.03)
    figure.suptitle(title, x=0.01, ha="left", size=FONT + 0.5, linespacing=1.15)
    grid = figure.subplots(rows, columns, sharey=sharey, squeeze=False).ravel().tolist()
    for axes in grid[count:]:
        axes.remove()
    if entries:
        place = {"loc": "outside lower left", "borderaxespad": 0.1, "labelspacing": 0.2, "columnspacing": 1.2}
        figure.legend([handle for handle, _ in entries], labels, ncols=across, **place)
    return figure, grid[:count]


def render(figure: Figure) -> dict[str, bytes]:
    """The files of a figure by their suffix: "png" and "svg"."""
    png, svg = io.BytesIO(), io.BytesIO()
    with matplotlib.rc_context(STYLE):
        for artist in (artist for axes in figure.axes for artist in (*axes.lines, *axes.collections, *axes.texts)):
            artist.set_in_layout(False)  # inside of the axes, and slow to measure
        figure.dpi = DPI
        # Not by `savefig`, which draws a figure twice for its layout: laid out once for both.
        FigureCanvasAgg(figure).print_png(png, pil_kwargs={"compress_level": 1})
        figure.set_layout_engine("none")
        FigureCanvasSVG(figure).print_svg(svg, metadata={"Date": None})
    return {"png": png.getvalue(), "svg": svg.getvalue()}
