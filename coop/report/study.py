"""Everything a report says, before it is put into tables and figures."""

from dataclasses import dataclass

import pandas as pd

from coop.report import checks
from coop.report.groups import Curves, make_cells, make_curves
from coop.report.published import compare
from coop.report.records import Records, keys_of, zero_shot_beside


@dataclass
class Study:
    """The runs of a report, averaged, joined and held against the published figures.

    Attributes:
        records: what was read.
        keys: columns of `cells` that say what was run.
        cells: all averages over seeds.
        curves: trained on a data set and tested on it; zero-shot among them, at 0 shots.
        transfers: trained on one data set and tested on others; zero-shot among them.
        comparisons: published figures beside ours, those of another setting included.
        warnings: what must be known before figures are compared.
        mixed: data sets of which runs have another split or another list of classes.
    """

    records: Records
    keys: list[str]
    cells: pd.DataFrame
    curves: Curves
    transfers: Curves
    comparisons: pd.DataFrame
    warnings: list[str]
    mixed: list[str]


def make_study(records: Records, published: pd.DataFrame) -> Study:
    """Average, join, compare."""
    runs = records.runs
    keys = keys_of(runs)
    cells, scores, warnings = make_cells(pd.concat([runs, zero_shot_beside(runs)]))
    parts, mixed = [], []
    for transfer in (False, True):
        curves = make_curves(cells[cells["transfer"] == transfer], scores, keys, transfer=transfer)
        own = runs[runs["transfer"] == transfer]
        warnings += checks.mixture_warnings(own, curves)
        mixed += checks.mixed_data(own)
        parts.append(curves)
    mixed = list(dict.fromkeys(mixed))
    warnings += [f"{text}; {checks.APART}" for text in mixed] + checks.version_warning(runs)
    # Zero-shot CLIP on one test set counts once, whether a training or an evaluation reported it.
    tested = [key for key in keys if not key.startswith("dataset.")]
    cells = cells.sort_values("transfer", kind="stable")
    cells = cells[~(cells["transfer"] & cells.duplicated(tested))]
    warnings = list(dict.fromkeys(warnings))
    return Study(records, keys, cells, *parts, compare(published, cells), warnings, mixed)
