"""Figures at the width of a journal's column, as PNG and SVG, readable without telling colours apart."""

import io
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from coop.reporting.tables import MINUS

WIDTH = 3.3  # inches
DPI = 200
FONT = 7.5
LINE = 0.135  # inches, height of a line of text
TITLE = 54  # characters of a title's line
NAME = 24  # characters of a line beside the axes
RIGHT = 0.16  # inches to the right of the axes, for half of the last tick's number
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
    """Points on one line of a few-shot figure: accuracies in %, deviation None where there is but one seed.

    Lines of one `style` look the same in all figures of a report.
    """

    style: int
    label: str
    shots: list[int]
    mean: list[float]
    sd: list[float | None]
    published: list[tuple[int, float, str]] = field(default_factory=list)  # shots, %, confidence


@dataclass
class Star:
    """Zero-shot accuracy in %."""

    label: str
    mean: float


def few_shot(title: str, seeds: str, lines: Sequence[Line], stars: Sequence[Star]) -> Figure:
    """Accuracy over training images per class, zero-shot as a star (the paper's figure 3).

    Published figures stand beside a line as diamonds of its colour: filled if verified, hollow if recalled.
    """
    shots = sorted({number for line in lines for number in line.shots}, key=lambda number: (number < 0, number))
    ticks = [0] * bool(stars) + shots
    place = {number: index for index, number in enumerate(ticks)}
    confidences = sorted({sure for line in lines for _, _, sure in line.published}, reverse=True)
    labels = [entry.label for entry in (*stars, *lines)] + [f"published ({sure})" for sure in confidences]
    figure, axes = _canvas(1.72, title, seeds, labels)
    handles = []
    for index, star in enumerate(stars):
        colour = "black" if index == 0 else COLOURS[-1 - index % len(COLOURS)]
        handles += axes.plot([0], [star.mean], "*", color=colour, ms=8, ls="none", zorder=4)
    # Side by side, so that error bars do not hide each other.
    step = min(0.07, 0.5 / len(lines))
    dodge = [step * (index - (len(lines) - 1) / 2) for index in range(len(lines))]
    for index, line in enumerate(lines):
        at = [place[number] + dodge[index] for number in line.shots]
        dash, look = DASHES[line.style % len(DASHES)], _style(line.style)
        handles.append(axes.errorbar(at, line.mean, _bars(line), ls=dash, **look))
        for number, value, sure in line.published:
            axes.plot(place[number] + dodge[index], value, **_diamond(sure, look["color"]))
    handles += [Line2D([], [], **_diamond(sure, "#555555")) for sure in confidences]
    axes.set_xticks(range(len(ticks)), ["all" if number < 0 else str(number) for number in ticks])
    axes.set_xlim(-0.4, len(ticks) - 0.6)
    axes.set(xlabel="training images per class (shots)", ylabel="test accuracy (%)")
    _legend(figure, handles, labels)
    return figure


def _style(index: int) -> dict[str, object]:
    """Of the line with this number."""
    colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
    return {"color": colour, "marker": marker, "elinewidth": 0.7, "capsize": 1.5}


def _diamond(confidence: str, colour: str) -> dict[str, object]:
    """Of a published figure: filled where it was verified."""
    fill = colour if confidence == "verified" else "white"
    return {"ls": "none", "marker": "d", "ms": 4.5, "mfc": fill, "mec": colour, "mew": 0.8, "zorder": 3}


def _bars(line: Line) -> list[float]:
    return [value or 0 for value in line.sd]


def gain(title: str, seeds: str, names: Sequence[str], gains: Sequence[float], bars: Sequence[float | None]) -> Figure:
    """Bars of the gain over zero-shot CLIP in percentage points, the largest on top (the paper's figure 4)."""
    order = sorted(range(len(names)), key=lambda index: gains[index])
    names = [_wrap(name) for name in names]
    row_height = 0.06 + 0.11 * max(1 + name.count("\n") for name in names)
    figure, axes = _canvas(row_height * len(names), title, seeds, [], _margin(names))
    for row, index in enumerate(order):
        positive = gains[index] >= 0
        colour, hatch = (COLOURS[0], None) if positive else (COLOURS[1], "////")
        axes.barh(row, gains[index], 0.7, color=colour if positive else "white", edgecolor=colour, hatch=hatch, lw=0.6)
        if bars[index]:
            axes.errorbar(gains[index], row, xerr=bars[index], color="black", elinewidth=0.7, capsize=1.5)
        end = gains[index] + (bars[index] or 0) * (1 if positive else -1)
        axes.annotate(
            f"{gains[index]:+.1f}".replace("-", MINUS),
            (end, row),
            xytext=(3 if positive else -3, 0),
            textcoords="offset points",
            va="center",
            ha="left" if positive else "right",
            size=FONT - 0.5,
        )
    axes.set_yticks(range(len(order)), [names[index] for index in order])
    axes.set_ylim(-0.6, len(order) - 0.4)
    axes.axvline(0, color="black", lw=0.6)
    axes.margins(x=0.2)
    axes.grid(axis="y", visible=False)
    # To the right, so that it may reach under the names where these take much room.
    axes.set_xlabel("gain over zero-shot (percentage points)", loc="right")
    return figure


def context(title: str, seeds: str, backbones: Sequence[str], lines: Sequence[Line], stars: dict[str, float]) -> Figure:
    """Accuracy by backbone and context length M, zero-shot as stars (the paper's figure 5).

    Args:
        title, seeds: above the figure.
        backbones: down the vertical axis.
        lines: one for each M; its `shots` are positions in `backbones`.
        stars: zero-shot accuracies in % by backbone.
    """
    names = ["\n(".join(map(_wrap, name.split(" ("))) for name in backbones]
    labels = [*["zero_shot"] * bool(stars), *(line.label for line in lines)]
    figure, axes = _canvas(0.16 * len(backbones) * (len(lines) + 1), title, seeds, labels, _margin(names))
    top = len(backbones) - 1
    handles = []
    if stars:
        at = [top - backbones.index(name) for name in stars]
        handles += axes.plot(list(stars.values()), at, "*", color="black", ms=7, ls="none")
    for index, line in enumerate(lines):
        dodge = 0.7 * ((index + 1) / (len(lines) + 1) - 0.5)
        at = [top - number - dodge for number in line.shots]
        handles.append(axes.errorbar(line.mean, at, xerr=_bars(line), ls="none", **_style(line.style)))
    axes.set_yticks(range(len(backbones)), names[::-1])
    axes.set_ylim(-0.5, len(backbones) - 0.5)
    axes.margins(x=0.08)
    axes.set_xlabel("test accuracy (%)")
    _legend(figure, handles, labels)
    return figure


def _canvas(height: float, title: str, seeds: str, labels: Sequence[str], left: float = 0.5) -> tuple[Figure, Axes]:
    """A figure with one pair of axes; title and legend have room of their own, so that they never cover anything.

    Args:
        height: inches of the axes.
        title, seeds: above; what is shown, and what points and bars mean.
        labels: of the legend.
        left: inches for what is written to the left of the axes.
    """
    lines = textwrap.wrap(title, TITLE)
    below = 0.42 + LINE * _legend_lines(labels)
    above = 0.22 + LINE * len(lines)
    total = height + below + above
    figure = Figure(figsize=(WIDTH, total))
    figure.text(0.02, 1 - 0.05 / total, "\n".join(lines), va="top", size=FONT + 0.5, linespacing=1.1)
    figure.text(0.02, 1 - (0.06 + LINE * len(lines)) / total, seeds, va="top", size=FONT - 1, color="#444444")
    box = (left / WIDTH, below / total, (WIDTH - left - RIGHT) / WIDTH, height / total)
    return figure, figure.add_axes(box)


def _legend(figure: Figure, handles: Sequence[object], labels: Sequence[str]) -> None:
    """At the very bottom."""
    where = {"loc": "lower left", "bbox_to_anchor": (0, 0), "borderaxespad": 0.1, "labelspacing": 0.15}
    wrapped = ["\n".join(textwrap.wrap(label, TITLE)) for label in labels]
    figure.legend(handles, wrapped, ncols=_columns(labels), columnspacing=1, **where)


def _legend_lines(labels: Sequence[str]) -> int:
    """How many lines of text the legend takes."""
    columns = _columns(labels)
    return sum(len(textwrap.wrap(label, TITLE)) for label in labels) if columns == 1 else -(-len(labels) // columns)


def _columns(labels: Sequence[str]) -> int:
    """Of the legend: two where the labels are short enough."""
    return 2 if len(labels) > 1 and max(map(len, labels)) <= 24 else 1


def _wrap(name: str) -> str:
    """A name in lines that leave room for the axes."""
    return "\n".join(textwrap.wrap(name, NAME))


def _margin(names: Sequence[str]) -> float:
    """Inches to the left of the axes for names of one or several lines."""
    return 0.15 + 0.06 * max(len(line) for name in names for line in name.split("\n"))


@dataclass
class Picture:
    """A figure to be drawn.

    Attributes:
        name: of its files.
        section: where it stands in the report.
        caption: what it shows.
        draw, arguments: the function that makes it, and what it is called with.
    """

    name: str
    section: str
    caption: str
    draw: Callable[..., Figure]
    arguments: tuple


Files = dict[str, bytes]


def render_all(pictures: Sequence[Picture]) -> list[Files]:
    """Draw figures, one after the other: a sweep's process has threads and perhaps a GPU, and must not be forked."""
    return [render(picture) for picture in pictures]


def render(picture: Picture) -> Files:
    """Draw one figure; its files by their suffix: "png" and "svg"."""
    files = {}
    with matplotlib.rc_context(STYLE):
        figure = picture.draw(*picture.arguments)
        for kind, options in (
            ("png", {"dpi": DPI, "pil_kwargs": {"compress_level": 1}}),
            ("svg", {"metadata": {"Date": None}}),
        ):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, **options)
            files[kind] = buffer.getvalue()
    return files
