"""The published figures beside ours."""

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from coop.reporting.cells import group
from coop.reporting.contents import READING, average_name, column, panels
from coop.reporting.curves import Average, Curve, average
from coop.reporting.published import CONFIDENCES, Comparison
from coop.reporting.study import Study
from coop.reporting.tables import Table, mean_sd_n, points

UNCHECKED = " †"


def published_tables(study: Study) -> list[Table]:
    """Published figures beside ours where the setting is the same, and what the others differ in."""
    same = [comparison for comparison in study.comparisons if comparison.same_setting]
    other = [comparison for comparison in study.comparisons if not comparison.same_setting]
    tables = []
    if same:
        header = ["data set", "method", "backbone", "published in", "confidence", "shots", "M", "ours", "published"]
        rows: list[Sequence[str] | None] = [_compared(comparison) for comparison in same]
        averages = [item.row() for item in published_averages(study)]
        rows += [None, *averages] if averages else []
        note = (
            f"{READING}; the difference is ours less the published figure, in percentage points. verified: read in a "
            "public source; recalled: written down from memory, agrees with published averages; low: a recollection, "
            "from which nothing is subtracted."
        )
        if any(comparison.unchecked for comparison in same):
            keys = sorted({key for comparison in same for key in comparison.unchecked})
            note += f"{UNCHECKED}: not recorded by our runs, so not known to be the same: {', '.join(keys)}."
        tables.append(Table("published", "Beside the published figures", [*header, "difference"], rows, 5, note))
    if other:
        reasons = Counter((item.figure.table, why_not(item)) for item in other)
        rows = [[table, why, str(count)] for (table, why), count in reasons.items()]
        title = "Published for the same data set, method, backbone, shots and M, but not compared"
        tables.append(Table("not_compared", title, ["published in", "because", "figures"], rows, 2))
    return tables


def why_not(comparison: Comparison) -> str:
    """What keeps a published figure from being compared."""
    return "; ".join(comparison.differing) or "the source does not say in which setting"


def _compared(comparison: Comparison) -> list[str]:
    figure, cell = comparison.figure, comparison.cell
    return [
        cell.data,
        cell.method,
        cell.keys["backbone"],
        f"{figure.table}: {figure.source}",
        figure.confidence + UNCHECKED * bool(comparison.unchecked),
        column(cell.shots) if cell.shots else "",
        str(cell.keys.get("n_ctx", "")),
        mean_sd_n(cell),
        f"{figure.accuracy:.2f}",
        points(comparison.difference),
    ]


@dataclass
class PublishedAverage:
    """Our average over several data sets, beside the average of the figures published for these in one table.

    Attributes:
        curve, data, shots: whose average, over which data sets.
        table: where the figures were published.
        ours, published: the averages; published in percent.
        confidence: the lowest of the figures'.
        checked: whether all settings are known to be the same.
    """

    curve: Curve
    data: list[str]
    shots: int
    table: str
    ours: Average
    published: float
    confidence: str
    checked: bool

    def row(self) -> list[str]:
        """As it stands in the table."""
        return [
            average_name(self.data),
            self.curve.method,
            self.curve.keys["backbone"],
            f"{self.table}: average of its figures",
            self.confidence + UNCHECKED * (not self.checked),
            column(self.shots) if self.shots else "",
            str(self.curve.keys.get("n_ctx", "")),
            mean_sd_n(self.ours),
            f"{self.published:.2f}",
            points(100 * self.ours.mean - self.published),
        ]


def published_averages(study: Study) -> list[PublishedAverage]:
    """Averages over data sets each of which has a figure in the same published table, to be held against ours."""
    found = []
    by_table = group([item for item in study.comparisons if item.comparable], lambda item: item.figure.table)
    averaged = [(panel, panel.places[-1][1]) for panel in panels(study) if len(panel.places[-1][1]) > 1]
    wanted = [(curve, data, shots) for panel, data in averaged for curve in panel.curves for shots in curve.shots]
    for table, comparisons in by_table.items():
        beside = {id(item.cell): item for item in comparisons}
        for curve, data, shots in wanted:
            ours = average(curve, data, shots)
            items = [beside.get(id(curve.cells.get((name, shots)))) for name in data]
            if ours is None or None in items:
                continue
            published = statistics.fmean(item.figure.accuracy for item in items)
            confidence = max((item.figure.confidence for item in items), key=CONFIDENCES.index)
            checked = not any(item.unchecked for item in items)
            found.append(PublishedAverage(curve, data, shots, table, ours, published, confidence, checked))
    return found
