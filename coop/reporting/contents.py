"""The tables of a report: few-shot, context length, transfer, and what is missing."""

import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from coop.reporting.cells import group, is_zero_shot, sample_sd, shots_text
from coop.reporting.curves import Average, Curve, average, frozen, sort_shots
from coop.reporting.study import Study
from coop.reporting.tables import NOTHING, Table, mean_sd_n

READING = "Accuracy in %: mean ± sample standard deviation (number of seeds)"


def column(shots: int) -> str:
    """The head of a column of shots."""
    return "all" if shots < 0 else str(shots)


@dataclass
class Panel:
    """Curves that share a few-shot table and figures: those of one backbone.

    Attributes:
        backbone: its name, and "base" or "new" classes.
        curves: zero-shot among them.
        places: (name, data sets) of each data set, and of the average where there is one.
    """

    backbone: str
    curves: list[Curve]
    places: list[tuple[str, list[str]]]

    @property
    def trained(self) -> list[Curve]:
        return [curve for curve in self.curves if not is_zero_shot(curve.method)]


def panels(study: Study) -> list[Panel]:
    """One per backbone; base and new classes apart."""
    found = []
    for (backbone, classes), curves in group(study.curves, lambda c: (c.backbone, c.keys["classes"])).items():
        name = backbone if classes == "all" else f"{backbone}, {classes} classes"
        found.append(Panel(name, curves, places(curves)))
    return found


def places(curves: Sequence[Curve]) -> list[tuple[str, list[str]]]:
    """Each data set, then the average of those that at least half of the trained curves have at all their shots.

    So one data set that was only begun, or one method tried on a single data set, does not take the average away.
    """
    names = sorted({data for curve in curves for data in curve.data})
    trained = [curve for curve in curves if not is_zero_shot(curve.method)] or curves
    averaged = [name for name in names if 2 * sum(_has_all(curve, name) for curve in trained) >= len(trained)]
    return by_data(names, averaged)


def by_data(names: Sequence[str], averaged: Sequence[str]) -> list[tuple[str, list[str]]]:
    """(name, data sets) of each, and of the average where it is one of several."""
    average_of = [(average_name(averaged), list(averaged))] if len(averaged) > 1 else []
    return [*((name, [name]) for name in names), *average_of]


def average_name(data: Sequence[str]) -> str:
    """ "average of 11 data sets"."""
    return f"average of {len(data)} data sets"


def _has_all(curve: Curve, data: str) -> bool:
    return all((data, shots) in curve.cells for shots in curve.shots)


def few_shot_tables(study: Study) -> list[Table]:
    """One table per backbone: data sets and methods down, shots across; the average over data sets last."""
    tables = []
    for number, panel in enumerate(panels(study), 1):
        shots = sort_shots({shots for curve in panel.curves for shots in curve.shots})
        rows: list[Sequence[str] | None] = []
        for name, members in panel.places:
            here = [curve for curve in panel.curves if set(members) & set(curve.data)]
            block = [[name, curve.label, *_row(curve, members, shots)] for curve in here]
            block = [row for row in block if set(row[2:]) - {"", NOTHING}]
            rows += [None] * bool(rows and block) + block
        title = f"{panel.backbone}: accuracy by training images per class"
        note = f"{READING}; 0 is zero-shot. {_averaged_of(panel)}".strip()
        tables.append(Table(f"few_shot_{number}", title, ["data set", "method", *map(column, shots)], rows, 2, note))
    return tables


def _averaged_of(panel: Panel) -> str:
    """Which data sets the average leaves out."""
    name, members = panel.places[-1]
    left_out = [other for other, own in panel.places if len(own) == 1 and other not in members]
    return f"Not in the {name}, because incomplete: {', '.join(left_out)}." if left_out and len(members) > 1 else ""


def _row(curve: Curve, data: Sequence[str], shots: Sequence[int]) -> Iterator[str]:
    for number in shots:
        if is_zero_shot(curve.method) != (number == 0):
            yield ""
        else:
            yield mean_sd_n(average(curve, data, number))


def by_context(study: Study) -> list[tuple[str, int, list[str], list[Curve]]]:
    """Studies of the context length and of backbones: (method, shots, data sets, curves).

    Curves stand together that differ in nothing but M and the backbone; shots is the largest number that two have.
    """
    found = []
    learned = [curve for curve in study.curves if "n_ctx" in curve.keys]
    for same in group(learned, _but_context).values():
        counts = Counter(shots for curve in same for shots in curve.shots)
        shared = [shots for shots in sort_shots(counts) if counts[shots] > 1]
        if shared and len({(curve.keys["n_ctx"], curve.backbone) for curve in same}) == len(same):
            curves = [curve for curve in same if shared[-1] in curve.shots]
            data = sorted({data for curve in curves for data, shots in curve.cells if shots == shared[-1]})
            found.append((same[0].label_without("n_ctx"), shared[-1], data, curves))
    return found


def _but_context(curve: Curve) -> tuple:
    varied = {"n_ctx", "backbone", "backbone.model", "pretrained", "trainable_params"}
    return frozen(curve.keys, curve.keys.keys() - varied)


def context_tables(study: Study) -> list[Table]:
    """One table per study of M and backbones."""
    tables = []
    for number, (label, shots, data, curves) in enumerate(by_context(study), 1):
        backbones = list(dict.fromkeys(curve.backbone for curve in curves))
        lengths = sorted({curve.keys["n_ctx"] for curve in curves})
        at = {(curve.keys["n_ctx"], curve.backbone): curve for curve in curves}
        rows: list[Sequence[str] | None] = []
        for name, members in by_data(data, data):
            rows += [None] * bool(rows)
            for length in lengths:
                cells = [at.get((length, backbone)) for backbone in backbones]
                values = [cell and average(cell, members, shots) for cell in cells]
                rows.append([name, str(length), *map(mean_sd_n, values)])
        title = f"{label}, {shots_text(shots)}: context length M by backbone"
        tables.append(Table(f"context_{number}", title, ["data set", "M", *backbones], rows, 1, f"{READING}."))
    return tables


def transfer_tables(study: Study) -> list[Table]:
    """Domain generalization: one table per source; targets across, zero-shot first."""
    trained = [curve for curve in study.transfers if "trained_on" in curve.keys]
    tables = []
    for number, (source, same) in enumerate(group(trained, _source).items(), 1):
        targets = list(dict.fromkeys(name for curve in same for name in curve.data if name != source))
        if not targets:
            continue
        base_to_new = targets == [source.removesuffix("(base)") + "(new)"]
        last = "harmonic mean" if base_to_new else f"average of {len(targets)} targets"
        summary = _harmonic_mean if base_to_new else _average_of_targets
        rows: list[Sequence[str] | None] = []
        for backbone, curves in group(same, lambda curve: curve.backbone).items():
            zero_shot = [c for c in study.transfers if is_zero_shot(c.method) and c.backbone == backbone]
            places = [(curve, 0) for curve in zero_shot if set(curve.data) & set(targets)]
            places += [(curve, shots) for curve in curves for shots in curve.shots]
            rows += [None] * bool(rows)
            for curve, shots in places:
                values = [average(curve, [data], shots) for data in (source, *targets)]
                values.append(summary(curve, shots, source, targets))
                rows.append([curve.backbone, curve.label, column(shots) if shots else "", *map(mean_sd_n, values)])
        header = ["backbone", "method", "shots", f"{source} (source)", *targets, last]
        title = f"Trained on {source}, tested on others"
        tables.append(Table(f"transfer_{number}", title, header, rows, left=2, note=f"{READING}."))
    return tables


def _source(curve: Curve) -> str:
    return next(iter(curve.cells.values())).source


def _average_of_targets(curve: Curve, shots: int, source: str, targets: Sequence[str]) -> Average | None:
    return average(curve, targets, shots)


def _harmonic_mean(curve: Curve, shots: int, source: str, targets: Sequence[str]) -> Average | None:
    """Of the accuracies on base and on new classes, seed by seed (CoCoOp, section 4.1)."""
    base, new = (curve.cells.get((data, shots)) for data in (source, *targets))
    if base is None or new is None:
        return None
    pairs = [(base.by_seed[seed], new.by_seed[seed]) for seed in base.by_seed.keys() & new.by_seed.keys()]
    means = [2 * a * b / (a + b) if a + b else 0.0 for a, b in pairs]
    return Average(len(means), statistics.fmean(means), sample_sd(means)) if means else None


def missing_table(study: Study) -> Table | None:
    """What is not there but has its like in other curves of the same backbone."""
    by_curve = group(study.missing, lambda item: (id(item[0]), item[1]))
    rows: list[Sequence[str] | None] = []
    for items in by_curve.values():
        curve, data, *_ = items[0]
        texts = group(items, lambda item: ", ".join(map(str, item[3])))
        for seeds, same in texts.items():
            rows.append([curve.backbone, curve.label, data, ", ".join(column(item[2]) for item in same), seeds])
    if not rows:
        return None
    header = ["backbone", "method", "data set", "shots", "seeds"]
    note = (
        "Expected is every data set and number of shots that some run of the same backbone has, with every seed that "
        "at least half of its cells have."
    )
    return Table("missing", f"Missing: {len(study.missing)} cells are incomplete", header, rows, 5, note)
