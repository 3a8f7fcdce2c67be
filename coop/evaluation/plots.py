"""Pictures of one run: how training went, and how each class fared."""

import io
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from coop.report.plots import COLORS, DASHES, STYLE
from coop.system.files import write_atomically

DPI = 150
PANEL = (3.6, 2.8)  # inches
CLASSES = 12  # shown at most
BINS = range(0, 101, 10)  # %
PAIRS = 10
NAME = 24  # characters


def draw_history(records: Sequence[dict], path: Path) -> None:
    """Loss, accuracy, and how far each context vector moved, by epoch, from the records of history.json, as a PNG."""
    table = pd.DataFrame(records).set_index("epoch")
    panels = [_draw_loss]
    panels += [_draw_accuracy] if "train/acc" in table else []
    panels += [_draw_movement] if "ctx_moved" in table else []
    with rc_context(STYLE):
        figure, axes = _panels(len(panels))
        for draw, ax in zip(panels, axes, strict=True):
            draw(ax, table)
            ax.set_xlabel("epoch")
            ax.xaxis.get_major_locator().set_params(integer=True)
        _save(figure, path)


def _draw_loss(ax: Axes, table: pd.DataFrame) -> None:
    ax.plot(table["train/loss"], color=COLORS[0])
    ax.set_ylabel("training loss (cross-entropy)")
    ax.set_ylim(bottom=0)


def _draw_accuracy(ax: Axes, table: pd.DataFrame) -> None:
    ax.plot(100 * table["train/acc"].dropna(), "-", color=COLORS[0], label="training images")
    if "val/acc" in table:
        ax.plot(100 * table["val/acc"].dropna(), "--", color=COLORS[1], label="validation images")
    ax.set_ylabel("accuracy (%)")
    ax.legend(loc="best")


def _draw_movement(ax: Axes, table: pd.DataFrame) -> None:
    """One line per context vector, with names where there are few enough to be told apart."""
    moved = pd.DataFrame(table["ctx_moved"].tolist(), index=table.index)
    count = moved.shape[1]
    if count <= len(COLORS):
        for m in moved:
            ax.plot(moved[m], DASHES[m % len(DASHES)], color=COLORS[m], label=f"v{m + 1}")
        ax.legend(loc="best")
    else:
        for m in moved:
            ax.plot(moved[m], color=COLORS[0], alpha=0.35 + 0.65 * (m + 1) / count, lw=0.8)
        ax.set_title(f"one line per vector; the darkest is v{count}", loc="right", fontsize=STYLE["font.size"] - 1)
    ax.set_ylabel("distance of context vectors\nfrom their start (Euclidean)")
    ax.set_ylim(bottom=0)


def draw_per_class(contents: dict, path: Path) -> None:
    """Accuracy by class with numbers of images, the most frequent confusions, and the calibration.

    Of many classes: how many of them have which accuracy, and those that have the most mistakes. `contents` is that
    of per_class.json, `path` that of the PNG.
    """
    classes = [c for c in contents["classes"] if c["n_test"]]
    with rc_context(STYLE):
        figure, axes = _panels(3 + (len(classes) > CLASSES))
        if len(classes) > CLASSES:
            _draw_distribution(axes[0], [100 * c["acc"] for c in classes])
        _draw_classes(axes[-3], classes)
        _draw_confused(axes[-2], contents["confused"], {c["classname"]: c["n_test"] for c in classes})
        _draw_calibration(axes[-1], contents["calibration"])
        _save(figure, path)


def _draw_distribution(ax: Axes, accuracies: Sequence[float]) -> None:
    """Numbers of classes by accuracy; those at 0 and at 100 % stand out of their bins."""
    none, all_right = accuracies.count(0), accuracies.count(100)
    between = [accuracy for accuracy in accuracies if 0 < accuracy < 100]
    counts, _, bars = ax.hist(between, bins=BINS, color=COLORS[0], rwidth=0.85)
    ax.bar_label(bars, [f"{count:.0f}" if count else "" for count in counts], fontsize=STYLE["font.size"] - 1)
    ends = ax.bar([-7, 107], [none, all_right], 8.5, color=[COLORS[1], COLORS[2]])
    ax.bar_label(ends, fontsize=STYLE["font.size"] - 1)
    ax.set_xticks([-7, *range(10, 100, 20), 107], ["all\nwrong", *map(str, range(10, 100, 20)), "all\nright"])
    ax.set(xlabel="accuracy (%)", ylabel="classes")
    ax.yaxis.get_major_locator().set_params(integer=True)
    ax.grid(axis="x", visible=False)
    ax.set_title(f"{len(accuracies)} classes by accuracy", loc="right")


def _draw_classes(ax: Axes, classes: Sequence[dict]) -> None:
    """Few classes with their accuracy; of many, those with the most mistakes. Both with numbers of images."""
    table = pd.DataFrame(classes)
    table["right"] = (table["acc"] * table["n_test"]).round().astype(int)
    table["wrong"] = table["n_test"] - table["right"]
    if len(table) > CLASSES:
        table = table.sort_values(["wrong", "acc"], ascending=[False, True], kind="stable")[:CLASSES]
        values, label = table["wrong"], "test images wrong, with right/all"
        ax.set_title("classes with the most mistakes", loc="right")
    else:
        table = table.sort_values("acc", kind="stable")
        values, label = 100 * table["acc"], "accuracy (%), with images right/all"
    texts = [f"{right}/{count}" for right, count in zip(table["right"], table["n_test"], strict=True)]
    _bars(ax, list(map(_short, table["classname"])), list(values), COLORS[0], texts)
    ax.set_xlabel(label)


def _draw_confused(ax: Axes, pairs: Sequence[dict], images: dict[str, int]) -> None:
    shown = pairs[:PAIRS]
    names = [f"{_short(p['classname'])} \N{RIGHTWARDS ARROW} {_short(p['predicted'])}" for p in shown]
    texts = [f"{p['count']}/{images[p['classname']]}" for p in shown]
    _bars(ax, names, [p["count"] for p in shown], COLORS[1], texts)
    ax.set_xlabel("test images of one class taken for another")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set_title("most frequent confusions" if shown else "no mistakes", loc="right")


def _bars(ax: Axes, names: Sequence[str], values: Sequence[float], color: str, texts: Sequence[str]) -> None:
    """Bars across, each with a text at its end."""
    size = STYLE["font.size"] - 2
    ax.bar_label(ax.barh(range(len(names)), values, color=color, height=0.7), texts, padding=2, fontsize=size)
    ax.set_yticks(range(len(names)), names, fontsize=size)
    ax.set_xlim(0, 1.15 * max([1, *values]))
    ax.set_ylim(max(len(names), 5) - 0.5, -0.5)  # from the top; a single bar does not fill the panel
    ax.grid(axis="y", visible=False)


def _draw_calibration(ax: Axes, calibration: dict) -> None:
    bins = pd.DataFrame(calibration["bins"], columns=["confidence", "acc", "count"], dtype=float)
    x, y, sizes = 100 * bins["confidence"], 100 * bins["acc"], 8 + 60 * bins["count"] / bins["count"].max()
    ax.plot([0, 100], [0, 100], ":", color="black", lw=0.8)
    ax.plot(x, y, "-", color=COLORS[2])
    ax.scatter(x, y, sizes, color=COLORS[2], zorder=3, clip_on=False)
    ax.set(xlabel="confidence (%); larger dot, more images", ylabel="accuracy (%)", xlim=(0, 102), ylim=(0, 102))
    ax.set_title(f"expected calibration error {100 * calibration['ece']:.1f} %", loc="right")


def _short(name: str) -> str:
    return name if len(name) <= NAME else f"{name[: NAME - 1]}\N{HORIZONTAL ELLIPSIS}"


def _panels(count: int) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(PANEL[0] * count, PANEL[1]), layout="constrained")
    return figure, figure.subplots(1, count, squeeze=False)[0]


def _save(figure: Figure, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    write_atomically(path, buffer.getvalue())
