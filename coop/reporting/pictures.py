"""Which figures a report has, and what stands in them."""

from collections.abc import Iterator, Sequence

from coop.reporting import figures
from coop.reporting.beside import published_averages
from coop.reporting.cells import Cell, group, is_zero_shot, shots_text
from coop.reporting.contents import average_name, by_context, panels
from coop.reporting.curves import Average, Curve, average, sort_shots
from coop.reporting.figures import Line, Picture, Star
from coop.reporting.study import Study

Published = list[tuple[int, float, str]]  # shots, %, confidence


def pictures(study: Study) -> list[Picture]:
    """All figures of a report."""
    return [*_few_shot(study), *_gains(study), *_contexts(study)]


def _few_shot(study: Study) -> Iterator[Picture]:
    """One per backbone: the average, then each data set, where there is more than one number of shots."""
    published = _published(study)
    for number, panel in enumerate(panels(study), 1):
        average_first = sorted(panel.places, key=lambda place: len(place[1]) == 1)
        for index, (name, members) in enumerate(average_first, 1):
            lines = [
                _line(style, curve, members, published.get((id(curve), name), []))
                for style, curve in enumerate(panel.trained)
            ]
            lines = [line for line in lines if line.shots]
            stars = [star for curve in panel.curves if (star := _star(curve, members))]
            points = [point for curve in panel.trained for point in _points(curve, members).values()]
            title = f"{name}, {panel.backbone}"
            if len({shots for line in lines for shots in line.shots}) > 1:
                arguments = (title, _seeds_text(points), lines, stars)
                file = f"few_shot_{number}_{index:02d}_{_slug(name)}"
                yield Picture(file, "few-shot", title, figures.few_shot, arguments)


def _points(curve: Curve, members: Sequence[str]) -> dict[int, Average]:
    averages = {shots: average(curve, members, shots) for shots in curve.shots}
    return {shots: value for shots, value in averages.items() if value is not None}


def _line(style: int, curve: Curve, members: Sequence[str], published: Published) -> Line:
    points = _points(curve, members)
    means = [100 * point.mean for point in points.values()]
    deviations = [_percent(point.sd) for point in points.values()]
    return Line(style, curve.label, list(points), means, deviations, published)


def _star(curve: Curve, members: Sequence[str]) -> Star | None:
    value = average(curve, members, 0) if is_zero_shot(curve.method) else None
    return value and Star(curve.label, 100 * value.mean)


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _published(study: Study) -> dict[tuple[int, str], Published]:
    """Published figures that a curve may be held against, by curve and by data set or average."""
    found: dict[tuple[int, str], Published] = {}
    beside = group([item for item in study.comparisons if item.comparable], lambda item: id(item.cell))
    for curve in study.curves:
        for (data, shots), cell in curve.cells.items():
            points = [(shots, item.figure.accuracy, item.figure.confidence) for item in beside.get(id(cell), ())]
            found.setdefault((id(curve), data), []).extend(points)
    for item in published_averages(study):
        point = (item.shots, item.published, item.confidence)
        found.setdefault((id(item.curve), average_name(item.data)), []).append(point)
    return found


def _seeds_text(values: Sequence[Average | Cell]) -> str:
    """What points and bars mean."""
    counts = sorted({value.n for value in values})
    if counts == [1]:
        return "one seed"
    number = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"mean of {number} seeds, bars: ± 1 standard deviation"


def _gains(study: Study) -> Iterator[Picture]:
    """At the largest number of shots: the data sets of a curve, or the curves that have but one data set."""
    for number, panel in enumerate(panels(study), 1):
        shots = sort_shots({shots for curve in panel.trained for shots in curve.shots})[-1:]
        there = [(curve, [cell for (_, at), cell in curve.cells.items() if at in shots]) for curve in panel.trained]
        bars = [(curve.label, [cell.data for cell in cells], cells) for curve, cells in there if len(cells) > 1]
        single = [(curve.label, cells[0]) for curve, cells in there if len(cells) == 1]
        for data, own in group(single, lambda pair: pair[1].data).items():
            bars.append((data, [label for label, _ in own], [cell for _, cell in own]))
        for index, (what, names, cells) in enumerate(bars, 1):
            title = f"{what}, {shots_text(*shots)}, {panel.backbone}"
            file = f"gain_{number}_{index:02d}_{_slug(what)}"
            yield Picture(file, "gain", title, figures.gain, _gain(title, names, cells))


def _gain(title: str, names: list[str], cells: list[Cell]) -> tuple:
    """Arguments of `figures.gain`."""
    gains = [100 * cell.gain for cell in cells]
    return title, _seeds_text(cells), names, gains, [_percent(cell.gain_sd) for cell in cells]


def _contexts(study: Study) -> Iterator[Picture]:
    """M by backbone: of the average where there are several data sets."""
    for number, (label, shots, data, curves) in enumerate(by_context(study), 1):
        averages = {(curve.keys["n_ctx"], curve.backbone): average(curve, data, shots) for curve in curves}
        points = {key: value for key, value in averages.items() if value}
        if len(points) < 2:
            continue
        backbones = list(dict.fromkeys(backbone for _, backbone in points))
        lengths = sorted({length for length, _ in points})
        lines = [_context_line(style, points, length, backbones) for style, length in enumerate(lengths)]
        zero_shot = {curve.backbone: _star(curve, data) for curve in study.curves if curve.method == "zero_shot"}
        stars = {name: star.mean for name, star in zero_shot.items() if star and name in backbones}
        what = data[0] if len(data) == 1 else average_name(data)
        title = f"{what}, {label}, {shots_text(shots)}"
        arguments = (title, _seeds_text(list(points.values())), backbones, lines, stars)
        yield Picture(f"context_{number}", "context", title, figures.context, arguments)


def _context_line(style: int, points: dict[tuple[int, str], Average], length: int, backbones: Sequence[str]) -> Line:
    there = [(index, points[length, name]) for index, name in enumerate(backbones) if (length, name) in points]
    means = [100 * value.mean for _, value in there]
    deviations = [_percent(value.sd) for _, value in there]
    return Line(style, f"M={length}", [index for index, _ in there], means, deviations)


def _slug(text: str) -> str:
    """Text as part of a file's name."""
    return "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in text)[:40].strip("_")
