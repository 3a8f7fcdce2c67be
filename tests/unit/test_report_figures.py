"""The figures: what is drawn, that nothing overlaps or leaves the page, and that the same runs give the same bytes."""

import io
import itertools
import math
import os

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from PIL import Image
from synthetic_runs import write_run

from coop.report import plots as figures
from coop.report.plots import STYLE, WIDE, WIDTH, Line, Plot, plots, render
from coop.report.published import expected_file, read_published
from coop.report.records import read_runs
from coop.report.study import make_study

LONG = "a_method_with_a_long_name augmentation=views:8, precision=bf16-mixed, optimizer.weight_decay=0.0005"
DATA = ["caltech101", "dtd", "fgvc_aircraft", "a data set with quite a long name of its own"]


def line(label="coop M=16", shots=(1, 2, 4, 8, 16), sd=1.0, published=(), style=0):
    mean = [60.0 + 2 * index for index in range(len(shots))]
    return Line(style, label, list(shots), mean, [sd] * len(mean), list(published))


STAR = ("zero_shot", 55.0)


def few_shot(lines, stars=(STAR,), title="caltech101, RN50-quickgelu (openai)"):
    return figures.few_shot, (title, "mean of 3 seeds, bars: ± 1 standard deviation", lines, stars)


def gain(names=tuple(DATA), gains=(12.0, 0.04, -3.0, -25.0), bars=(0.5, math.nan, 1.0, 3.0), title="coop, 16 shots"):
    return figures.gain, (title, "one seed", list(names), list(gains), list(bars))


def context(backbones=("RN50-quickgelu (openai)", "ViT-B-16-quickgelu (laion2b_s34b_b88k)"), lengths=(4, 8, 16)):
    places = list(range(len(backbones)))
    lines = [Line(n, f"M={n}", places, [60.0 + n] * len(places), [1.0] * len(places)) for n in lengths]
    return figures.context, ("average of 11 data sets, coop", "one seed", list(backbones), lines, {backbones[0]: 58.0})


EXAMPLES = {
    "one line": few_shot([line()]),
    "published": few_shot([line(published=[(1, 59.0, "recalled"), (16, 70.0, "verified")]), line("coop M=4")]),
    "twelve lines": few_shot([line(f"coop M={number}, unified, end", style=number) for number in range(12)]),
    "twenty long labels": few_shot([line(f"{LONG} {number}", style=number) for number in range(20)]),
    "long labels": few_shot([line(LONG), line(LONG + " too")], title=f"caltech101, {LONG}"),
    "no star": few_shot([line(shots=(1, -1))], stars=()),
    "odd names": few_shot([line("$x_1$ & <b>")], title="$a^2"),
    "gain": gain(),
    "gain of one": gain(["mini"], [19.6], [math.nan]),
    "gain by method": gain([LONG, "coop"], [3.0, 4.0], [0.1, 0.1]),
    "gain of twenty": gain([f"{LONG} {number}" for number in range(20)], range(-3, 17), [1.0] * 20),
    "losses": gain(["a", "b"], [-10.0, -12.0], [1.0, 2.0]),
    "context": context(),
    "one backbone": context(backbones=["RN50-quickgelu (openai)"]),
}


MANY_LINES = ("twelve lines", "twenty long labels", "gain of twenty")
HEIGHTS = {"one line": 1.72, "twelve lines": 3.4, "context": 0.16 * 2 * 4}


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
    return [(text.get_text(), text.get_window_extent(renderer)) for text in texts]


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
    (axes,) = figure.axes
    assert figure.get_figwidth() == pytest.approx(WIDE if example in MANY_LINES else WIDTH)
    assert "%" in axes.get_xlabel() + axes.get_ylabel() or "percentage points" in axes.get_xlabel()
    assert min(text.get_fontsize() for text in figure.findobj(Text) if text.get_text()) >= 6.5
    around = axes.get_window_extent()
    for box in (legend.get_window_extent() for legend in figure.legends):
        assert box.x0 > around.x1 if figure.get_figwidth() > WIDTH else box.y1 < around.y0
    assert around.height / figure.dpi == pytest.approx(HEIGHTS[example], abs=0.1) if example in HEIGHTS else True


def test_few_shot_draws_the_figures():
    draw, arguments = EXAMPLES["published"]
    (axes,) = draw(*arguments).axes
    means = [bars.lines[0].get_ydata() for bars in axes.containers]
    assert [list(mean) for mean in means] == [[60, 62, 64, 66, 68]] * 2
    spread = axes.containers[0].lines[2][0].get_segments()[0]
    assert spread[:, 1] == pytest.approx([59, 61])
    points = [(entry.get_marker(), *entry.get_ydata()) for entry in axes.lines if len(entry.get_ydata()) == 1]
    assert points == [("*", 55.0), ("d", 59.0), ("d", 70.0)]
    recalled, verified = [entry for entry in axes.lines if entry.get_marker() == "d"]
    assert recalled.get_markerfacecolor() == "white" and verified.get_markerfacecolor() == figures.COLOURS[0]


def test_lines_differ_without_colour():
    draw, arguments = EXAMPLES["twelve lines"]
    (axes,) = draw(*arguments).axes
    looks = {(bars.lines[0].get_marker(), bars.lines[0].get_linestyle()) for bars in axes.containers}
    assert len(looks) == 12


def test_gain_draws_the_figures():
    draw, arguments = gain()
    (axes,) = draw(*arguments).axes
    widths = [patch.get_width() for patch in axes.patches]
    assert widths == [-25.0, -3.0, 0.04, 12.0]  # the largest on top
    assert [text.get_text() for text in axes.texts] == ["−25.0", "−3.0", "+0.0", "+12.0"]  # noqa: RUF001
    assert [patch.get_hatch() for patch in axes.patches] == ["////", "////", None, None]


def picture(example):
    return Plot(example, "few-shot", example, *EXAMPLES[example])


def test_files():
    files = render(picture("published"))
    assert set(files) == {"png", "svg"}
    image = Image.open(io.BytesIO(files["png"]))
    assert image.width == 660  # 3.3 inches
    assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 20
    assert files["svg"].startswith(b"<?xml") and b"<dc:date>" not in files["svg"]


@pytest.mark.parametrize("example", ["published", "context", "gain"])
def test_the_same_figure_has_the_same_bytes_and_nothing_is_forked(example, monkeypatch):
    """A process with threads or a GPU, as a sweep's, must not be forked."""
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("forked"))
    assert render(picture(example)) == render(picture(example))


def test_pictures_of_a_study(tmp_path):
    for number, (data, shots, seed) in enumerate(itertools.product(["caltech101", "dtd"], [1, 16], [1, 2])):
        acc = 0.7 + 0.01 * seed + 0.1 * (shots == 16)
        write_run(tmp_path / str(number), dataset=data, shots=shots, seed=seed, acc=acc)
    found = {one.name: one for one in plots(make_study(read_runs([tmp_path]), read_published(expected_file())))}
    assert list(found) == [
        "few_shot_1_01_average_of_2_data_sets",
        "few_shot_1_02_caltech101",
        "few_shot_1_03_dtd",
        "gain_1_01_coop",
    ]
    title, seeds, (drawn_line,), (star,) = found["few_shot_1_02_caltech101"].arguments
    assert title == "caltech101, RN50-quickgelu (openai)"
    assert seeds == "mean of 2 seeds, bars: ± 1 standard deviation"
    assert (drawn_line.label, drawn_line.places) == ("coop", [1, 16])
    assert drawn_line.mean == pytest.approx([71.5, 81.5])
    assert drawn_line.sd == pytest.approx([0.5**0.5, 0.5**0.5])
    assert drawn_line.published == [(1, 87.53, "recalled"), (16, 91.83, "recalled")]
    assert star == ("zero_shot", pytest.approx(60.0))
    _, _, names, gains, bars = found["gain_1_01_coop"].arguments
    assert names == ["caltech101", "dtd"]
    assert gains == pytest.approx([21.5, 21.5]) and bars == pytest.approx([0.5**0.5, 0.5**0.5])
    average = found["few_shot_1_01_average_of_2_data_sets"].arguments[2][0]
    assert average.published[1][1:] == (pytest.approx(77.705), "recalled")


def test_a_method_looks_the_same_in_every_figure(tmp_path):
    for data, method, shots in [
        *itertools.product(["caltech101"], ["coop", "tip_adapter"], [1, 16]),
        ("dtd", "tip_adapter", 1),
        ("dtd", "tip_adapter", 16),
    ]:
        write_run(tmp_path / f"{data} {method} {shots}", dataset=data, method=method, shots=shots, seed=1, acc=0.7)
    found = {one.name: one for one in plots(make_study(read_runs([tmp_path]), read_published(expected_file())))}
    styles = {
        name: {line.label: line.style for line in one.arguments[2]} for name, one in found.items() if "few" in name
    }
    both, alone = (next(of for name, of in styles.items() if data in name) for data in ("caltech101", "dtd"))
    assert len(set(both.values())) == 2
    assert alone == {"tip_adapter": both["tip_adapter"]}


def test_gains_by_data_set_where_there_are_more_methods_than_data_sets(tmp_path):
    write_run(tmp_path / "a", acc=0.7)
    write_run(tmp_path / "b", acc=0.8, method="linear_probe")
    write_run(tmp_path / "c", acc=0.65, method="text_bias")
    write_run(tmp_path / "d", acc=0.63, method="text_bias", dataset="dtd")
    found = {
        one.name: one.arguments[2:4]
        for one in plots(make_study(read_runs([tmp_path]), read_published(expected_file())[:0]))
    }
    assert found == {
        "gain_1_01_caltech101": (["coop", "linear_probe", "text_bias"], pytest.approx([10.0, 20.0, 5.0])),
        "gain_1_02_dtd": (["text_bias"], pytest.approx([3.0])),
    }
