"""The figures of a report, as PNG and SVG, readable without telling colours apart.

A figure is as wide as a journal's column, or as two of them where it has many lines.
"""

import io
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from coop.report.groups import Curves, shots_text, sort_shots
from coop.report.study import Study
from coop.report.tables import MINUS, average_name, averages_beside, by_context, panels, places, shots_column

WIDTH, WIDE = 3.3, 6.9  # inches: one and two columns of a journal
HEIGHT, TALL = 1.72, 3.4  # inches of the axes
MANY = 8  # lines in a figure of one column
DPI = 200
FONT = 7.5
TITLE = 54  # characters of a title's line in one column
NAME = 24  # characters of a line beside the axes
# Okabe and Ito's palette without its yellow, which is too light on white; every colour has a marker and a dash of its
# own, so that the figures survive a black and white printer.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
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
    """Points on one line of a figure, in percent; deviations are NaN where there is but one seed.

    Lines of one `style` look the same in all figures of a report.
    """

    style: int
    label: str
    places: list[int]
    mean: list[float]
    sd: list[float]
    published: list[tuple[int, float, str]] = field(default_factory=list)  # shots, %, confidence


@dataclass
class Plot:
    """A figure to be drawn.

    Attributes:
        name: of its files.
        section: where it stands in the report.
        title: what it shows.
        draw, arguments: the function that makes it, and what it is called with.
    """

    name: str
    section: str
    title: str
    draw: Callable[..., Figure]
    arguments: tuple


def plots(study: Study) -> list[Plot]:
    """All figures of a report."""
    return [*_few_shot(study), *_gains(study), *_contexts(study)]


def _few_shot(study: Study) -> Iterator[Plot]:
    """One per backbone: the average, then each data set, where there is more than one number of shots."""
    for number, (panel, curves) in enumerate(panels(study), 1):
        published = _published(study, curves)
        style = {curve: index for index, curve in enumerate(curves.of(zero_shot=False).table.index)}
        average_first = sorted(places(curves), key=lambda place: len(place[1]) == 1)
        for index, (name, members) in enumerate(average_first, 1):
            averages = curves.average(members).reset_index("shots")
            labels, lines = curves.table["label"], []
            for curve, own in averages[averages.index.isin(style)].groupby("curve"):
                own = own.set_index("shots").loc[sort_shots(own["shots"])]
                beside = published.get((curve, name), [])
                lines.append(Line(style[curve], labels[curve], own.index.tolist(), *_percents(own), beside))
            stars = [(labels[curve], 100 * row["mean"]) for curve, row in averages.iterrows() if curve not in style]
            if len({shots for line in lines for shots in line.places}) > 1:
                title = f"{name}, {panel}"
                seeds = averages.loc[averages.index.isin(style), "n"]
                file = f"few_shot_{number}_{index:02d}_{_slug(name)}"
                yield Plot(file, "few-shot", title, few_shot, (title, _seeds_text(seeds), lines, stars))


def _percents(averages: pd.DataFrame, mean: str = "mean", sd: str = "sd") -> tuple[list[float], list[float]]:
    return (100 * averages[mean]).tolist(), (100 * averages[sd]).tolist()


def _published(study: Study, curves: Curves) -> dict[tuple[int, str], list[tuple[int, float, str]]]:
    """Published figures that a curve may be held against, by curve and by data set or average."""
    pairs = study.comparisons[study.comparisons["comparable"]]
    places = curves.points[["curve", "cell"]].drop_duplicates()
    beside = pd.concat([places.merge(pairs, on="cell"), averages_beside(study, curves)])
    found: dict[tuple[int, str], list[tuple[int, float, str]]] = {}
    columns = ("curve", "data", "shots", "accuracy_percent", "confidence")
    for curve, data, *point in zip(*(beside[name] for name in columns), strict=True):
        found.setdefault((curve, data), []).append(tuple(point))
    return found


def _gains(study: Study) -> Iterator[Plot]:
    """At the largest number of shots: for each curve its data sets; where curves are more, for each data set these."""
    for number, (panel, curves) in enumerate(panels(study), 1):
        curves = curves.of(zero_shot=False)
        shots = sort_shots(curves.points["shots"])[-1:]
        cells = curves.points[curves.points["shots"].isin(shots)].drop_duplicates(["curve", "cell"])
        cells = cells[["curve", "cell", "data"]].join(study.cells[["gain", "gain_sd", "n"]], on="cell")
        cells["label"] = cells["curve"].map(curves.table["label"])
        what, bars = ("label", "data") if cells["curve"].nunique() < cells["data"].nunique() else ("data", "label")
        for index, (name, own) in enumerate(cells.groupby(what, sort=False), 1):
            title = f"{name}, {shots_text(*shots)}, {panel}"
            arguments = title, _seeds_text(own["n"]), own[bars].tolist(), *_percents(own, "gain", "gain_sd")
            yield Plot(f"gain_{number}_{index:02d}_{_slug(name)}", "gain", title, gain, arguments)


def _contexts(study: Study) -> Iterator[Plot]:
    """M by backbone: of the average where there are several data sets."""
    for number, (name, shots, data, curves) in enumerate(by_context(study), 1):
        averages = curves.average(data).join(curves.table[["n_ctx", "backbone"]], on="curve")
        if len(averages) < 2:
            continue
        backbones = list(dict.fromkeys(averages["backbone"]))
        lines = []
        for style, (length, own) in enumerate(averages.groupby("n_ctx")):
            lines.append(Line(style, f"M={length}", [backbones.index(n) for n in own["backbone"]], *_percents(own)))
        stars = study.curves.of(method="zero_shot")
        means = stars.average(data)["mean"].droplevel("shots").groupby(stars.table["backbone"]).last()
        stars = {backbone: 100 * means[backbone] for backbone in backbones if backbone in means}
        title = f"{data[0] if len(data) == 1 else average_name(data)}, {name}, {shots_text(shots)}"
        arguments = (title, _seeds_text(averages["n"]), backbones, lines, stars)
        yield Plot(f"context_{number}", "context", title, context, arguments)


def _seeds_text(counts: pd.Series) -> str:
    """What points and bars mean."""
    low, high = counts.min(), counts.max()
    if high == 1:
        return "one seed"
    return f"mean of {high if low == high else f'{low} to {high}'} seeds, bars: ± 1 standard deviation"


def _slug(text: str) -> str:
    """Text as part of a file's name."""
    return "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in text)[:40].strip("_")


def few_shot(title: str, seeds: str, lines: Sequence[Line], stars: Sequence[tuple[str, float]]) -> Figure:
    """Accuracy over training images per class, zero-shot as a star (the paper's figure 3).

    Published figures stand beside a line as diamonds of its colour: filled if verified, hollow if recalled. Many lines
    are listed in the order in which they end.
    """
    many = len(lines) > MANY
    lines = sorted(lines, key=lambda line: -line.mean[-1]) if many else lines
    shots = sort_shots([number for line in lines for number in line.places])
    ticks = [0] * bool(stars) + shots
    place = {number: index for index, number in enumerate(ticks)}
    figure, axes = _canvas(title, seeds, many)
    entries = []
    for index, (label, mean) in enumerate(stars):
        colour = "black" if index == 0 else COLOURS[-1 - index % len(COLOURS)]
        entries.append((*axes.plot([0], [mean], "*", color=colour, ms=8, ls="none", zorder=4), label))
    # Side by side, so that error bars do not hide each other.
    step = min(0.07, 0.5 / len(lines))
    for index, line in enumerate(lines):
        dodge = step * (index - (len(lines) - 1) / 2)
        dash, look = DASHES[line.style % len(DASHES)], _style(line.style)
        bars = axes.errorbar([place[number] + dodge for number in line.places], line.mean, _bars(line), ls=dash, **look)
        entries.append((bars, line.label))
        for number, value, sure in line.published:
            axes.plot(place[number] + dodge, value, **_diamond(sure, look["color"]))
    for sure in sorted({sure for line in lines for _, _, sure in line.published}, reverse=True):
        entries.append((Line2D([], [], **_diamond(sure, "#555555")), f"published ({sure})"))
    axes.set_xticks(range(len(ticks)), map(shots_column, ticks))
    axes.set_xlim(-0.4, len(ticks) - 0.6)
    axes.set(xlabel="training images per class (shots)", ylabel="test accuracy (%)")
    _legend(figure, entries, many)
    return _fitted(figure, TALL if many else HEIGHT)


def gain(title: str, seeds: str, names: Sequence[str], gains: Sequence[float], bars: Sequence[float]) -> Figure:
    """Bars of the gain over zero-shot CLIP in percentage points, the largest on top (the paper's figure 4)."""
    rows = pd.DataFrame(
        {"name": [_wrap(name, 2 * NAME if len(names) > MANY else NAME) for name in names], "gain": gains}
    )
    rows = rows.assign(sd=pd.Series(bars, dtype=float).fillna(0.0)).sort_values("gain", kind="stable")
    figure, axes = _canvas(title, seeds, len(names) > MANY)
    for row, (value, sd) in enumerate(zip(rows["gain"], rows["sd"], strict=True)):
        positive = value >= 0
        colour, hatch = (COLOURS[0], None) if positive else (COLOURS[1], "////")
        axes.barh(row, value, 0.7, color=colour if positive else "white", edgecolor=colour, hatch=hatch, lw=0.6)
        place = {"xytext": (3 if positive else -3, 0), "ha": "left" if positive else "right", "va": "center"}
        text, end = f"{value:+.1f}".replace("-", MINUS), value + sd * (1 if positive else -1)
        axes.annotate(text, (end, row), textcoords="offset points", size=FONT - 0.5, **place)
    bars = rows["sd"].where(rows["sd"] > 0)
    axes.errorbar(rows["gain"], range(len(rows)), xerr=bars, color="black", ls="none", elinewidth=0.7, capsize=1.5)
    axes.set_yticks(range(len(rows)), rows["name"])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.axvline(0, color="black", lw=0.6)
    axes.margins(x=0.2)
    axes.grid(axis="y", visible=False)
    # To the right, so that it may reach under the names where these take much room.
    axes.set_xlabel("gain over zero-shot (percentage points)", loc="right")
    return _fitted(figure, (0.06 + 0.11 * max(1 + name.count("\n") for name in rows["name"])) * len(rows))


def context(title: str, seeds: str, backbones: Sequence[str], lines: Sequence[Line], stars: dict[str, float]) -> Figure:
    """Accuracy by backbone and context length M, zero-shot as stars (the paper's figure 5).

    Args:
        title, seeds: above the figure.
        backbones: down the vertical axis.
        lines: one for each M; its `places` are positions in `backbones`.
        stars: zero-shot accuracies in % by backbone.
    """
    figure, axes = _canvas(title, seeds, False)
    top = len(backbones) - 1
    entries = []
    if stars:
        at = [top - backbones.index(name) for name in stars]
        entries.append((*axes.plot(list(stars.values()), at, "*", color="black", ms=7, ls="none"), "zero_shot"))
    for index, line in enumerate(lines):
        dodge = 0.7 * ((index + 1) / (len(lines) + 1) - 0.5)
        at = [top - number - dodge for number in line.places]
        entries.append((axes.errorbar(line.mean, at, xerr=_bars(line), ls="none", **_style(line.style)), line.label))
    names = ["\n(".join(_wrap(part, NAME) for part in name.split(" (")) for name in backbones]
    axes.set_yticks(range(len(backbones)), names[::-1])
    axes.set_ylim(-0.5, len(backbones) - 0.5)
    axes.margins(x=0.08)
    axes.set_xlabel("test accuracy (%)")
    _legend(figure, entries, False)
    return _fitted(figure, 0.16 * len(backbones) * (len(lines) + 1))


def _style(index: int) -> dict[str, Any]:
    """Of the line with this number."""
    colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
    return {"color": colour, "marker": marker, "elinewidth": 0.7, "capsize": 1.5}


def _diamond(confidence: str, colour: str) -> dict[str, Any]:
    """Of a published figure: filled where it was verified."""
    fill = colour if confidence == "verified" else "white"
    return {"ls": "none", "marker": "d", "ms": 4.5, "mfc": fill, "mec": colour, "mew": 0.8, "zorder": 3}


def _bars(line: Line) -> list[float]:
    return pd.Series(line.sd, dtype=float).fillna(0.0).tolist()


def _wrap(name: str, width: int) -> str:
    """A name in lines that leave room for the axes."""
    return "\n".join(textwrap.wrap(name, width))


def _canvas(title: str, seeds: str, wide: bool) -> tuple[Figure, Axes]:
    """A figure with one pair of axes; above them what is shown, and what points and bars mean."""
    figure = Figure(figsize=(WIDE if wide else WIDTH, 4), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.02, w_pad=0.02)
    figure.suptitle(_wrap(title, 2 * TITLE if wide else TITLE), x=0.01, ha="left", size=FONT + 0.5, linespacing=1.1)
    axes = figure.add_subplot()
    # At the figure's left edge, not at the axes': with long names there is no room above these.
    axes.set_title(seeds, loc="left", size=FONT - 1, color="#444444", pad=3)
    return figure, axes


def _legend(figure: Figure, entries: Sequence[tuple[Any, str]], many: bool) -> None:
    """At the bottom; on the right where there are many lines."""
    handles, labels = [handle for handle, _ in entries], [_wrap(label, 40 if many else TITLE) for _, label in entries]
    columns = 2 if not many and len(labels) > 1 and max(map(len, labels)) <= NAME else 1
    place = "outside right upper" if many else "outside lower left"
    figure.legend(handles, labels, loc=place, ncols=columns, columnspacing=1, borderaxespad=0.1, labelspacing=0.15)


def _fitted(figure: Figure, height: float) -> Figure:
    """The figure as high as it has to be for axes of this height (inches), with all text outside of them."""
    layout, axes = figure.get_layout_engine(), figure.axes[0]
    for artist in (*axes.lines, *axes.patches, *axes.collections, *axes.texts):
        artist.set_in_layout(False)  # inside of the axes, and slow to measure
    layout.execute(figure)
    around = figure.get_figheight() * (1 - axes.get_position().height)
    beside = [legend.get_window_extent().height / figure.dpi for legend in figure.legends]
    figure.set_figheight(max(height + around, *(measured + 0.1 for measured in beside), 0))
    layout.execute(figure)
    figure.set_layout_engine("none")
    return figure


def render(plot: Plot) -> dict[str, bytes]:
    """Draw one figure; its files by their suffix: "png" and "svg"."""
    files = {}
    with matplotlib.rc_context(STYLE):
        figure = plot.draw(*plot.arguments)
        for kind, options in (
            ("png", {"dpi": DPI, "pil_kwargs": {"compress_level": 1}}),
            ("svg", {"metadata": {"Date": None}}),
        ):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, **options)
            files[kind] = buffer.getvalue()
    return files
