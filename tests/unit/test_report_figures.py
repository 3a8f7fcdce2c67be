"""The figures: what is drawn, that nothing overlaps or leaves the page, and that the same runs give the same bytes."""

import functools
import io
import itertools
import math
import os

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from synthetic_runs import write_run

from coop.report import plots as figures
from coop.report.leaderboard import boards
from coop.report.plots import MANY, STYLE, WIDE, WIDTH, Line, plots, render
from coop.report.published import read_published
from coop.report.records import read_runs
from coop.report.study import make_study

LONG = "a_method_with_a_long_name augmentation=views:8, precision=bf16-mixed, optimizer.weight_decay=0.0005"
DATA = ["caltech101", "dtd", "fgvc_aircraft", "a data set with quite a long name of its own"]


def line(label="coop M=16", shots=(1, 2, 4, 8, 16), half=1.0, published=(), style=0):
    mean = [60.0 + 2 * index for index in range(len(shots))]
    return Line(style, label, list(shots), mean, [half] * len(mean), list(published))


STAR = Line(99, "zero_shot", [0], [55.0], [0.0])


def accuracy(lines, stars=(STAR,), places=("caltech101",), title="Accuracy by shots, RN50-quickgelu (openai)"):
    return figures.accuracy, (
        title,
        [(place, [*stars, *lines]) for place in places],
    )


def gain(names=tuple(DATA), gains=(12.0, 0.04, -3.0, -25.0), halves=(0.5, 0.0, 1.0, 3.0), places=("coop",)):
    columns = {("gain", place): gains for place in places} | {("half", place): halves for place in places}
    return figures.gain, ("Gain over zero-shot, 16 shots", pd.DataFrame(columns, index=list(names)))


def cost(labels, title="Accuracy against cost, RN50-quickgelu (openai), 16 shots"):
    points = [(3 + 7 * index % 50, 60 + 5 * index % 12) for index in range(len(labels))]
    methods = [Line(n, label, [x], [y], [0.5]) for n, (label, (x, y)) in enumerate(zip(labels, points, strict=True))]
    return figures.cost, (title, methods, [58.0], "accuracy")


EXAMPLES = {
    "one line": accuracy([line()]),
    "published": accuracy([line(published=[(1, 59.0, "recalled"), (16, 70.0, "verified")]), line("coop M=4", style=1)]),
    "twelve data sets": accuracy([line()], places=[*DATA, *map(str, range(8))]),
    "thirty lines": accuracy([line(f"method {number}", style=number) for number in range(30)], places=DATA[2:]),
    "twenty long labels": accuracy([line(f"{LONG} {number}", style=number) for number in range(20)]),
    "long labels": accuracy([line(LONG), line(LONG + " too", style=1)], title=f"caltech101, {LONG}"),
    "no star": accuracy([line(shots=(1, -1))], stars=()),
    "odd names": accuracy([line("$x_1$ & <b>")], title="$a^2"),
    "gain": gain(),
    "gain of one": gain(["mini"], [19.6], [0.0]),
    "gain by method": gain([LONG, "coop"], [3.0, 4.0], [0.1, 0.1]),
    "gain of twenty": gain([f"{LONG} {number}" for number in range(20)], range(-3, 17), [1.0] * 20, places=DATA[:3]),
    "losses": gain(["a", "b"], [-10.0, -12.0], [1.0, 2.0]),
    "cost": cost(["coop", "maple", "taskres"]),
    "cost of thirty": cost([f"method {number}" for number in range(30)]),
    "cost of long labels": cost([LONG, LONG + " too", "coop"]),
}


@functools.cache
def drawn(example):
    draw, arguments = EXAMPLES[example]
    with matplotlib.rc_context(STYLE):
        figure = draw(*arguments)
        figure.dpi = 200
        FigureCanvasAgg(figure).draw()
    return figure


def boxes(figure):
    """(what it says, its bounding box in pixels) of every text that shows."""
    renderer = figure.canvas.get_renderer()
    hidden = {tick.label1 for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) for tick in beyond(axis)}
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text() and text not in hidden]
    return [(text.get_text(), Text.get_window_extent(text, renderer)) for text in texts]  # without its arrow


def beyond(axis):
    """Ticks that Matplotlib makes beyond the limits of an axis, and does not draw."""
    low, high = sorted(axis.get_view_interval())
    return [tick for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high]


@pytest.mark.parametrize("example", EXAMPLES)
def test_no_text_overlaps_another_or_leaves_the_page(example):
    figure = drawn(example)
    page = figure.bbox
    found = boxes(figure)
    assert len(found) >= 5
    for text, box in found:
        assert page.x0 - 1 <= box.x0 and box.x1 <= page.x1 + 1, f"{text!r} leaves the page"
        assert page.y0 - 1 <= box.y0 and box.y1 <= page.y1 + 1, f"{text!r} leaves the page"
    for (one, first), (other, second) in itertools.combinations(found, 2):
        assert not _overlap(first, second), f"{one!r} overlaps {other!r}"


def _overlap(first, second, tolerance=2):
    across = min(first.x1, second.x1) - max(first.x0, second.x0)
    down = min(first.y1, second.y1) - max(first.y0, second.y0)
    return across > tolerance and down > tolerance


@pytest.mark.parametrize("example", EXAMPLES)
def test_column_width_and_axes_are_named(example):
    figure = drawn(example)
    wide = len(figure.axes) > 1 or any(len(legend.get_texts()) > MANY for legend in figure.legends)
    assert figure.get_figwidth() == pytest.approx(WIDE if wide else WIDTH)
    first, last = figure.axes[0], figure.axes[-1]
    assert "%" in first.get_ylabel() or "percentage points" in last.get_xlabel()
    assert min(text.get_fontsize() for text in figure.findobj(Text) if text.get_text()) >= 5
    for legend, axes in itertools.product(figure.legends, figure.axes):
        assert legend.get_window_extent().y1 < axes.get_window_extent().y0 + 1


def test_accuracy_draws_the_figures():
    draw, arguments = EXAMPLES["published"]
    (axes,) = draw(*arguments).axes
    means = [list(drawn.get_ydata()) for drawn in axes.lines if len(drawn.get_ydata()) == 5]
    assert means == [[60, 62, 64, 66, 68]] * 2
    band = axes.collections[1].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (59, 69)
    points = [(entry.get_marker(), *entry.get_ydata()) for entry in axes.lines if len(entry.get_ydata()) == 1]
    assert points == [("*", 55.0), ("d", 59.0), ("d", 70.0)]
    recalled, verified = [entry for entry in axes.lines if entry.get_marker() == "d"]
    assert recalled.get_markerfacecolor() == "white" and verified.get_markerfacecolor() == figures.COLORS[0]


def test_thirty_lines_are_told_apart_without_color_and_by_number():
    figure = drawn("thirty lines")
    for axes in figure.axes:
        looks = {(line.get_color(), line.get_marker(), line.get_linestyle()) for line in axes.lines}
        assert len(looks) == len({look[1:] for look in looks}) == 30
        assert sorted(int(text.get_text()) for text in axes.texts) == list(range(1, 31))
    assert "zero_shot 55.0" in figure.axes[0].get_title("left")
    assert figure.legends[0].get_texts()[0].get_text() == "1 method 0"


def test_gain_draws_the_figures():
    draw, arguments = gain()
    (axes,) = draw(*arguments).axes
    widths = [patch.get_width() for patch in axes.patches if not math.isnan(patch.get_width())]
    assert sorted(widths) == [-25.0, -3.0, 0.04, 12.0]
    assert [text.get_text() for text in axes.texts] == ["−25.0", "−3.0", "+0.0", "+12.0"]  # the largest on top # noqa: RUF001
    assert {patch.get_hatch() for patch in axes.patches if patch.get_width() < 0} == {"////"}
    assert {patch.get_hatch() for patch in axes.patches if patch.get_width() > 0} == {None}


@pytest.mark.parametrize("more", [0, 6])
def test_cost_joins_what_nothing_beats_and_names_it_among_many(more):
    points = {"slow and good": (100, 80.0), "slow": (120, 79.0), "fast": (1, 70.0), "between": (10, 69.0)}
    points |= {f"worse {n}": (20 + n, 60.0 + n) for n in range(more)}
    methods = [Line(n, name, [x], [y], [1.0]) for n, (name, (x, y)) in enumerate(points.items())]
    (axes,) = figures.cost("title", methods, [60.0], "accuracy").axes
    assert [text.get_text() for text in axes.texts] == (["fast", "slow and good"] if more else [])
    front = next(line for line in axes.lines if len(line.get_xdata()) == 2 and line.get_color() == "#999999")
    assert (list(front.get_xdata()), list(front.get_ydata())) == ([1, 100], [70.0, 80.0])


def picture(example):
    draw, arguments = EXAMPLES[example]
    with matplotlib.rc_context(STYLE):
        return draw(*arguments)


def test_files():
    files = render(picture("published"))
    assert set(files) == {"png", "svg"}
    image = Image.open(io.BytesIO(files["png"]))
    assert image.width == 660  # 3.3 inches
    assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 20
    assert files["svg"].startswith(b"<?xml") and b"<dc:date>" not in files["svg"]


@pytest.mark.parametrize("example", ["published", "cost", "gain"])
def test_the_same_figure_has_the_same_bytes_and_nothing_is_forked(example, monkeypatch):
    """A process with threads or a GPU, as a sweep's, must not be forked."""
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("forked"))
    assert render(picture(example)) == render(picture(example))


def pictures_of(folder, published=None):
    """Figures of a study by name, with what they were drawn from."""
    study = make_study(read_runs([folder]), read_published() if published is None else published)
    found = {}

    def noting(draw):
        return lambda *arguments: found.setdefault(arguments[0], arguments[1:]) and Figure()

    with pytest.MonkeyPatch.context() as patch:
        for name in ("accuracy", "gain", "cost"):
            patch.setattr(figures, name, noting(getattr(figures, name)))
        return {plot.name: found[plot.title] for plot in plots(study, boards(study))}


def test_pictures_of_a_study(tmp_path):
    for number, (data, shots, seed) in enumerate(itertools.product(["caltech101", "dtd"], [1, 16], [1, 2])):
        acc = 0.7 + 0.01 * seed + 0.1 * (shots == 16)
        write_run(tmp_path / str(number), dataset=data, shots=shots, seed=seed, acc=acc)
    found = pictures_of(tmp_path)
    assert list(found) == ["few_shot_1", "gain_1"]
    places = found["few_shot_1"][0]
    assert [name for name, _ in places] == ["average of 2 data sets", "caltech101", "dtd"]  # the average first
    star, coop = places[1][1]
    half = 12.7062 * 0.5  # a standard error of 0.5
    assert (coop.label, coop.places, coop.mean) == ("coop", [1, 16], pytest.approx([71.5, 81.5]))
    assert coop.half == pytest.approx([half, half], rel=1e-5)
    assert coop.published == [[1, 87.53, "recalled"], [16, 91.83, "recalled"]]
    assert (star.label, star.places, star.mean) == ("zero_shot", [0], pytest.approx([60.0]))
    assert places[0][1][1].published[1][1:] == [pytest.approx(77.705), "recalled"]
    wide = found["gain_1"][0]
    assert wide["gain"]["coop"].to_dict() == pytest.approx({"caltech101": 21.5, "dtd": 21.5})
    assert wide["half"]["coop"].tolist() == pytest.approx([half, half], rel=1e-5)


def test_a_method_looks_the_same_in_every_figure(tmp_path):
    for data, method, shots in itertools.product(["caltech101", "dtd"], ["coop", "tcp", "maple", "taskres"], [1, 16]):
        if (data, method) != ("dtd", "coop"):
            write_run(tmp_path / f"{data} {method} {shots}", dataset=data, method=method, shots=shots, acc=0.7)
    found = pictures_of(tmp_path)
    styles = [{line.label: line.style for line in lines} for _, lines in found["few_shot_1"][0]]
    assert len(set(styles[1].values())) == 5
    costs = {line.label: line.style for line in found["cost_1"][0]}
    assert all(style.items() <= styles[1].items() for style in (*styles, costs))
    assert set(costs) == {"tcp", "maple", "taskres"}  # coop has no rank: it lacks dtd


def test_gains_by_data_set_where_there_are_more_methods_than_data_sets(tmp_path):
    write_run(tmp_path / "a", acc=0.7)
    write_run(tmp_path / "b", acc=0.8, method="linear_probe")
    write_run(tmp_path / "c", acc=0.65, method="text_bias")
    write_run(tmp_path / "d", acc=0.63, method="text_bias", dataset="dtd")
    wide = pictures_of(tmp_path)["gain_1"][0]["gain"]
    assert wide["caltech101"].to_dict() == pytest.approx({"coop": 10.0, "linear_probe": 20.0, "text_bias": 5.0})
    assert wide["dtd"].dropna().to_dict() == pytest.approx({"text_bias": 3.0})
