"""What a report knows, in long form with full figures, for other programs: runs.csv, cells.csv, published.csv."""

from collections.abc import Sequence

from coop.reporting.beside import why_not
from coop.reporting.cells import Cell
from coop.reporting.study import Study
from coop.reporting.tables import to_csv


def cells_csv(study: Study) -> bytes:
    """Every cell with its keys; accuracies in percent."""
    names = list(dict.fromkeys(key for cell in study.cells for key in cell.keys))
    header = [*names, "n_seeds", "seeds", "mean_percent", "sd_percent", "zero_shot_percent", "gain_points"]
    return to_csv(header, [_cell_row(cell, names) for cell in study.cells])


def _cell_row(cell: Cell, names: Sequence[str]) -> list:
    keys = [cell.keys.get(name) for name in names]
    seeds = " ".join(map(str, cell.by_seed))
    return [*keys, cell.n, seeds, *map(_percent, (cell.mean, cell.sd, cell.zero_shot, cell.gain))]


def runs_csv(study: Study) -> bytes:
    """Every run and test set, one seed each; accuracies in percent."""
    scores = [*study.found.trained, *study.found.transferred]
    names = list(dict.fromkeys(key for score in scores for key in score.keys))
    rows = [
        [
            *(score.keys.get(name) for name in names),
            score.seed,
            *map(_percent, (score.acc, score.macro_acc, score.zero_shot)),
            score.path,
        ]
        for score in scores
    ]
    return to_csv([*names, "seed", "accuracy_percent", "macro_percent", "zero_shot_percent", "results"], rows)


def published_csv(study: Study) -> bytes:
    """Every published figure that has its like among ours, and why it was not compared."""
    same = ["dataset", "method", "backbone", "shots", "n_ctx"]
    header = ["table", *same, "published_percent", "confidence", "source", "ours_percent", "sd_percent", "n_seeds"]
    rows = []
    for item in study.comparisons:
        figure, cell = item.figure, item.cell
        why = "confidence is low" if item.same_setting else why_not(item)
        published = [figure.table, *map(figure.same.get, same), f"{figure.accuracy:.2f}", figure.confidence]
        ours = [figure.source, _percent(cell.mean), _percent(cell.sd), cell.n]
        difference = None if item.difference is None else f"{item.difference:.4f}"
        rows.append([*published, *ours, difference, None if item.comparable else why, " ".join(item.unchecked)])
    return to_csv([*header, "difference_points", "not_compared_because", "unchecked"], rows)


def _percent(fraction: float | None) -> str | None:
    return None if fraction is None else f"{100 * fraction:.4f}"
