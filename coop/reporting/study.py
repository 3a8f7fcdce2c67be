"""Everything a report says, before it is put into tables and figures."""

from collections.abc import Sequence
from dataclasses import dataclass

from coop.reporting.cells import Cell, make_cells
from coop.reporting.curves import Curve, make_curves, missing_cells
from coop.reporting.mixtures import APART, mixed_data, mixture_warnings
from coop.reporting.published import Comparison, Figure, compare
from coop.reporting.runs import Found


@dataclass
class Study:
    """The runs of a report, averaged, joined and held against the published figures.

    Attributes:
        found: what was read.
        cells: all averages over seeds.
        curves: trained on a data set and tested on it; zero-shot among them, at 0 shots.
        transfers: trained on one data set and tested on others; zero-shot among them.
        missing: (curve, data, shots, seeds) that other curves of the same backbone have.
        comparisons: published figures beside ours, those of another setting included.
        warnings: what must be known before figures are compared.
        mixed: data sets of which runs have another split or another list of classes.
    """

    found: Found
    cells: list[Cell]
    curves: list[Curve]
    transfers: list[Curve]
    missing: list[tuple[Curve, str, int, list[int]]]
    comparisons: list[Comparison]
    warnings: list[str]
    mixed: list[str]


def make_study(found: Found, figures: Sequence[Figure]) -> Study:
    """Average, join, compare."""
    cells, curves, warnings, mixed = [], [], [], []
    trained, transferred = found.trained, found.transferred
    for scores, own in (
        ([*trained, *found.zero_shot], trained),
        ([*transferred, *found.transferred_zero_shot], transferred),
    ):
        own_cells, twins = make_cells(scores)
        own_curves = make_curves(own_cells, across_classes=own is transferred)
        warnings += twins + mixture_warnings(own, own_curves)
        mixed += mixed_data(own)
        cells.append(own_cells)
        curves.append(own_curves)
    mixed = list(dict.fromkeys(mixed))
    warnings += [f"{text}; {APART}" for text in mixed] + _version_warning(found)
    trained_zero_shot = {_identity(cell) for cell in cells[0]}
    compared = cells[0] + [cell for cell in cells[1] if _identity(cell) not in trained_zero_shot]
    return Study(
        found=found,
        cells=compared,
        curves=curves[0],
        transfers=curves[1],
        missing=missing_cells(curves[0]),
        comparisons=compare(figures, compared),
        warnings=list(dict.fromkeys(warnings)),
        mixed=mixed,
    )


def _identity(cell: Cell) -> tuple:
    """Zero-shot CLIP on one test set, whether a training or an evaluation reported it."""
    tested = {key: value for key, value in cell.keys.items() if not key.startswith("dataset.")}
    return tuple(sorted((key, str(value)) for key, value in tested.items()))


def _version_warning(found: Found) -> list[str]:
    if len(found.versions) < 2:
        return []
    return [f"the runs were written by several versions of coop: {', '.join(sorted(found.versions))}"]
