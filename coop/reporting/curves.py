"""Curves: cells of one method in one setting, over data sets and numbers of shots."""

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from coop import schedule
from coop.reporting.cells import Cell, frozen, group, is_zero_shot, label_part, sample_sd
from coop.reporting.runs import Keys

# Keys that a curve always agrees in. The others (n_test, a data set's template, Tip-Adapter's alpha, ...) go with the
# data set: a curve is split by them only where one data set has several values.
COMMON = (
    *("method", "backbone", "pretrained", "n_ctx", "class_specific", "class_token_position", "method.ctx_init"),
    *("augmentation", "batch_size", "precision", "tf32", "config.yaml", "trained_on", "trained_classes"),
)
WITH_SHOTS = {"trainable_params"}  # Tip-Adapter-F trains its cache of the shots
COMMON_GROUPS = ("optimizer.", "backbone.")
LABELLED_ELSEWHERE = {
    *("dataset", "classes", "shots", "backbone", "pretrained", "method", "trained_on", "trained_classes", "epochs")
}
PAPER = "the paper's"


@dataclass(eq=False)
class Curve:
    """Cells that may stand in one row or on one line.

    Attributes:
        keys: what its cells agree in.
        cells: by (data, shots).
        telling: what tells this curve from the method's others: parts of its label by key.
    """

    keys: Keys
    cells: dict[tuple[str, int], Cell]
    telling: dict[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The method, and what tells this curve from the method's others."""
        return self.label_without()

    def label_without(self, *keys: str) -> str:
        """The label without the parts of some keys, which stand elsewhere."""
        parts = [part for key, part in self.telling.items() if key not in keys]
        return " ".join([self.method, ", ".join(parts)]).strip()

    @property
    def method(self) -> str:
        return self.keys["method"]

    @property
    def backbone(self) -> str:
        return backbone_name(self.keys)

    @property
    def data(self) -> list[str]:
        """Test sets, in order of first appearance."""
        return list(dict.fromkeys(data for data, _ in self.cells))

    @property
    def shots(self) -> list[int]:
        return sort_shots({shots for _, shots in self.cells})


@dataclass(frozen=True)
class Average:
    """The average over several data sets: of each seed that all of them have, then over seeds."""

    n: int
    mean: float
    sd: float | None


def backbone_name(keys: Keys) -> str:
    """The backbone with its weights: "RN50-quickgelu (openai)"."""
    pretrained = keys.get("pretrained")
    return f"{keys['backbone']} ({pretrained})" if pretrained else keys["backbone"]


def sort_shots(shots: Iterable[int]) -> list[int]:
    """Ascending; "all images" (-1) last."""
    return sorted(shots, key=lambda number: (number < 0, number))


def paper_epochs(data: str, shots: int) -> int:
    """The paper's rule with its exception: ImageNet always 50 (CoOp, section 4.1)."""
    return 50 if data == "imagenet" else schedule.epochs_by_shots(shots)


def make_curves(cells: Sequence[Cell], across_classes: bool = False) -> list[Curve]:
    """Join cells that differ in nothing but what goes with the data set and the number of shots; in a fixed order.

    Args:
        cells: all of them.
        across_classes: whether base and new classes are two test sets of one curve, instead of two problems.
    """
    curves = []
    common = [*COMMON, *([] if across_classes else ["classes"])]
    for alike in group(cells, lambda cell: frozen(cell.keys, _with_groups(common, cell))).values():
        for rule, members in _by_epochs(alike):
            tied = _conflicting(members)
            for same in group(members, lambda cell, tied=tied: frozen(cell.keys, tied)).values():
                shared = [*_with_groups(common, same[0]), *tied]
                keys = {key: same[0].keys[key] for key in shared if key in same[0].keys}
                by_place = {(cell.data, cell.shots): cell for cell in same}
                curves.append(Curve(keys | ({"epochs": rule} if rule else {}), by_place))
    _tell_apart(curves)
    return sorted(curves, key=_place)


def _place(curve: Curve) -> tuple:
    """Zero-shot first, then by method, M, and the other choices of a method."""
    keys = curve.keys
    variant = keys.get("class_specific", False), keys.get("class_token_position", "")
    return not is_zero_shot(curve.method), curve.method, keys.get("n_ctx", 0), *variant


def _with_groups(common: Sequence[str], cell: Cell) -> list[str]:
    return [*common, *(key for key in cell.keys if key.startswith(COMMON_GROUPS))]


def _by_epochs(cells: Sequence[Cell]) -> list[tuple[str, list[Cell]]]:
    """Cells by their rule for the number of epochs: the paper's, or one number whatever the shots.

    Where the two agree (50 epochs for 1 shot), a cell belongs to both.
    """
    rules = group(cells, _epochs_rule)
    paper = rules.pop(PAPER, [])
    fixed = {}
    for rule, own in rules.items():
        here = {cell.data for cell in own}
        fixed[rule] = own + [cell for cell in paper if str(cell.keys["epochs"]) == rule and cell.data in here]
    shared = {id(cell) for members in fixed.values() for cell in members}
    if any(id(cell) not in shared for cell in paper):
        fixed = {PAPER: paper} | fixed
    return list(fixed.items())


def _epochs_rule(cell: Cell) -> str:
    epochs = cell.keys.get("epochs")
    if not epochs:
        return ""
    data = cell.keys.get("trained_on", cell.keys["dataset"])
    return PAPER if epochs == paper_epochs(data, cell.shots) else str(epochs)


def _conflicting(cells: Sequence[Cell]) -> list[str]:
    """Keys in which the cells of one data set differ, apart from those that every curve agrees in."""
    names = {key for cell in cells for key in cell.keys} - {"shots", "dataset", "classes", "epochs"}
    by_data = group(cells, lambda cell: cell.data).values()
    by_place = group(cells, lambda cell: (cell.data, cell.shots)).values()

    def differs(key: str) -> bool:
        alike = by_place if key in WITH_SHOTS else by_data
        return any(len({cell.keys.get(key) for cell in same}) > 1 for same in alike)

    return sorted(filter(differs, names))


def _tell_apart(curves: Sequence[Curve]) -> None:
    """Find the keys in which the curves of one method differ; where that is not enough, what some did not record."""
    for same in group(curves, lambda curve: curve.method).values():
        keys = dict.fromkeys(
            [key for curve in same for key in curve.keys if key not in LABELLED_ELSEWHERE] + ["epochs"]
        )
        for key in keys:
            if len({curve.keys[key] for curve in same if key in curve.keys}) > 1:
                _tell(same, key)
        for alike in group(same, lambda curve: (curve.backbone, curve.keys.get("classes"), curve.label)).values():
            for key in keys:
                same_label = len({curve.label for curve in alike}) < len(alike)
                if same_label and len({curve.keys.get(key) for curve in alike}) > 1:
                    _tell(alike, key)


def _tell(curves: Sequence[Curve], key: str) -> None:
    for curve in curves:
        if key in curve.keys:
            value = curve.keys[key]
            curve.telling[key] = f"{value} epochs" if key == "epochs" else label_part(key, value)
        elif key == "method.template":
            curve.telling[key] = "template of the data set"
        elif "." in key and "config.yaml" not in curve.keys:
            curve.telling[key] = label_part(key, "null")
        else:
            curve.telling[key] = f"{key} not recorded"


def average(curve: Curve, data: Sequence[str], shots: int) -> Average | None:
    """The average of a curve over data sets; None unless all have a seed in common."""
    cells = [curve.cells.get((name, shots)) for name in data]
    if None in cells:
        return None
    if all(is_zero_shot(cell.method) and cell.n == 1 for cell in cells):
        return Average(1, statistics.fmean(cell.mean for cell in cells), None)
    seeds = set.intersection(*(set(cell.by_seed) for cell in cells))
    values = [statistics.fmean(cell.by_seed[seed] for cell in cells) for seed in sorted(seeds)]
    return Average(len(values), statistics.fmean(values), sample_sd(values)) if values else None


def missing_cells(curves: Sequence[Curve]) -> list[tuple[Curve, str, int, list[int]]]:
    """What a curve lacks of the data sets and shots that its backbone's other curves have, and of the usual seeds.

    Returns:
        (curve, data, shots, seeds that are missing).
    """
    trained = [curve for curve in curves if not is_zero_shot(curve.method)]
    missing = []
    for same in group(trained, lambda curve: (curve.backbone, curve.keys["classes"])).values():
        places = dict.fromkeys(place for curve in same for place in curve.cells)
        data, shots = dict.fromkeys(place[0] for place in places), sort_shots({place[1] for place in places})
        seeds = _usual_seeds([cell for curve in same for cell in curve.cells.values()])
        for curve in same:
            for place in ((name, number) for name in data for number in shots):
                have = curve.cells[place].by_seed if place in curve.cells else {}
                if absent := [seed for seed in seeds if seed not in have]:
                    missing.append((curve, *place, absent))
    return missing


def _usual_seeds(cells: Sequence[Cell]) -> list[int]:
    """Seeds that at least half of the cells have, so that an extra seed somewhere is not asked for everywhere."""
    counts = Counter(seed for cell in cells for seed in cell.by_seed)
    return sorted(seed for seed, count in counts.items() if 2 * count >= len(cells))
