"""Pictures of one run: how training went, and how each class fared."""

import io
from collections.abc import Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from coop.files import write_atomically
from coop.reporting.figures import COLOURS, DASHES, STYLE

DPI = 150
PANEL = (3.6, 2.8)  # inches
CLASSES = 12  # shown at most, the worst and the best
PAIRS = 10
NAME = 24  # characters


def draw_history(records: Sequence[dict], path: Path) -> None:
    """Loss, accuracy, and how far each context vector moved, by epoch.

    Args:
        records: of history.json.
        path: of the PNG.
    """
    panels = [_draw_loss]
    panels += [_draw_accuracy] if any("train/acc" in record for record in records) else []
    panels += [_draw_movement] if "ctx_moved" in records[0] else []
    with rc_context(STYLE):
        figure, axes = _panels(len(panels))
        for draw, ax in zip(panels, axes, strict=True):
            draw(ax, records)
            ax.set_xlabel("epoch")
            ax.xaxis.get_major_locator().set_params(integer=True)
        _save(figure, path)


def _draw_loss(ax: Axes, records: Sequence[dict]) -> None:
    ax.plot([r["epoch"] for r in records], [r["train/loss"] for r in records], color=COLOURS[0])
    ax.set_ylabel("training loss (cross-entropy)")
    ax.set_ylim(bottom=0)


def _draw_accuracy(ax: Axes, records: Sequence[dict]) -> None:
    for key, label, colour, dash in (
        ("train/acc", "training images", COLOURS[0], "-"),
        ("val/acc", "validation images", COLOURS[1], "--"),
    ):
        known = [r for r in records if key in r]
        if known:
            ax.plot([r["epoch"] for r in known], [100 * r[key] for r in known], dash, color=colour, label=label)
    ax.set_ylabel("accuracy (%)")
    ax.legend(loc="best")


def _draw_movement(ax: Axes, records: Sequence[dict]) -> None:
    """One line per context vector, with names where there are few enough to be told apart."""
    epochs = [r["epoch"] for r in records]
    count = len(records[0]["ctx_moved"])
    for m in range(count):
        moved = [r["ctx_moved"][m] for r in records]
        if count <= len(COLOURS):
            ax.plot(epochs, moved, DASHES[m % len(DASHES)], color=COLOURS[m], label=f"v{m + 1}")
        else:
            ax.plot(epochs, moved, color=COLOURS[0], alpha=0.35 + 0.65 * (m + 1) / count, lw=0.8)
    if count <= len(COLOURS):
        ax.legend(loc="best")
    else:
        ax.set_title(f"one line per vector; the darkest is v{count}", loc="right", fontsize=STYLE["font.size"] - 1)
    ax.set_ylabel("distance of context vectors\nfrom their start (Euclidean)")
    ax.set_ylim(bottom=0)


def draw_per_class(contents: dict, path: Path) -> None:
    """Accuracy of the worst and best classes, the most frequent confusions, and the calibration.

    Args:
        contents: of per_class.json.
        path: of the PNG.
    """
    with rc_context(STYLE):
        figure, axes = _panels(3)
        _draw_classes(axes[0], contents["classes"])
        _draw_confused(axes[1], contents["confused"])
        _draw_calibration(axes[2], contents["calibration"])
        _save(figure, path)


def _draw_classes(ax: Axes, classes: Sequence[dict]) -> None:
    known = sorted((c for c in classes if c["n_test"]), key=lambda c: c["acc"])
    half = CLASSES // 2
    shown = known if len(known) <= CLASSES else [*known[:half], *known[-half:]]
    _bars(ax, [_short(c["classname"]) for c in shown], [100 * c["acc"] for c in shown], COLOURS[0])
    if len(known) > CLASSES:
        ax.axhline(half - 0.5, color="black", lw=0.8, ls=":")
        ax.set_title(f"the {half} worst and {half} best of {len(known)} classes", loc="right")
    ax.set_xlabel("accuracy (%)")
    ax.set_xlim(0, 100)


def _draw_confused(ax: Axes, pairs: Sequence[dict]) -> None:
    shown = pairs[:PAIRS]
    names = [f"{_short(p['classname'])} \N{RIGHTWARDS ARROW} {_short(p['predicted'])}" for p in shown]
    _bars(ax, names, [p["count"] for p in shown], COLOURS[1])
    ax.set_xlabel("test images of one class taken for another")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set_title("most frequent confusions" if shown else "no mistakes", loc="right")


def _bars(ax: Axes, names: Sequence[str], values: Sequence[float], colour: str) -> None:
    ax.barh(range(len(names)), values, color=colour, height=0.7)
    ax.set_yticks(range(len(names)), names, fontsize=STYLE["font.size"] - 2)
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)


def _draw_calibration(ax: Axes, calibration: dict) -> None:
    ax.plot([0, 100], [0, 100], ":", color="black", lw=0.8)
    bins = calibration["bins"]
    most = max((b["count"] for b in bins), default=1)
    ax.plot([100 * b["confidence"] for b in bins], [100 * b["acc"] for b in bins], "-", color=COLOURS[2])
    sizes = [8 + 60 * b["count"] / most for b in bins]
    ax.scatter(
        [100 * b["confidence"] for b in bins],
        [100 * b["acc"] for b in bins],
        sizes,
        color=COLOURS[2],
        zorder=3,
        clip_on=False,
    )
    ax.set_xlabel("confidence (%); larger dot, more images")
    ax.set_ylabel("accuracy (%)")
    ax.set_title(f"expected calibration error {100 * calibration['ece']:.1f} %", loc="right")
    ax.set_xlim(0, 102)
    ax.set_ylim(0, 102)


def _short(name: str) -> str:
    return name if len(name) <= NAME else f"{name[: NAME - 1]}\N{HORIZONTAL ELLIPSIS}"


def _panels(count: int) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(PANEL[0] * count, PANEL[1]), layout="constrained")
    return figure, figure.subplots(1, count, squeeze=False)[0]


def _save(figure: Figure, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    write_atomically(path, buffer.getvalue())
