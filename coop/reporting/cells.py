"""Cells: what the runs of all seeds of one setting came to, and warnings about settings that must not be mixed."""

import statistics
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from coop.reporting.runs import RUNS_OWN, Keys, Score, is_zero_shot

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)

# Two accuracies this close are the same, computed on machines that round differently.
SAME = 1e-6


@dataclass(frozen=True, eq=False)
class Cell:
    """The scores of one setting, one per seed, ordered by seed."""

    keys: Keys
    scores: tuple[Score, ...]

    @property
    def data(self) -> str:
        """The test set, with the part of its classes that was tested: "caltech101", "caltech101 (base)"."""
        return data_name(self.keys["dataset"], self.keys["classes"])

    @property
    def source(self) -> str:
        """The training set of a cell that was tested on another."""
        return data_name(self.keys["trained_on"], self.keys["trained_classes"])

    @property
    def shots(self) -> int:
        return self.keys["shots"]

    @property
    def method(self) -> str:
        return self.keys["method"]

    @property
    def by_seed(self) -> dict[int, float]:
        """Accuracies by seed; one alone where nothing is random and all are the same."""
        values = {score.seed: score.acc for score in self.scores}
        if is_zero_shot(self.method) and max(values.values()) - min(values.values()) <= SAME:
            return dict(list(values.items())[:1])
        return values

    @property
    def n(self) -> int:
        """Number of seeds."""
        return len(self.by_seed)

    @property
    def mean(self) -> float:
        return statistics.fmean(self.by_seed.values())

    @property
    def sd(self) -> float | None:
        """Sample standard deviation over seeds; None with fewer than two."""
        return sample_sd(self.by_seed.values())

    @property
    def zero_shot(self) -> float:
        """Mean accuracy of zero-shot CLIP in the same runs."""
        return statistics.fmean(score.zero_shot for score in self.scores)

    @property
    def gain(self) -> float:
        """Mean difference to zero-shot CLIP in the same runs."""
        return statistics.fmean(score.acc - score.zero_shot for score in self.scores)

    @property
    def gain_sd(self) -> float | None:
        """Sample standard deviation of that difference."""
        return sample_sd(score.acc - score.zero_shot for score in self.scores)


def data_name(dataset: str, classes: str) -> str:
    """ "caltech101", "caltech101 (base)"."""
    return dataset if classes == "all" else f"{dataset} ({classes})"


def sample_sd(values: Iterable[float]) -> float | None:
    """Sample standard deviation (divisor n - 1); None with fewer than two values."""
    values = list(values)
    return statistics.stdev(values) if len(values) > 1 else None


def group(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """Items by key, in order of first appearance."""
    groups: dict[K, list[T]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return dict(groups)


def frozen(keys: Keys, names: Iterable[str] | None = None) -> tuple[tuple[str, Any], ...]:
    """Keys in a form that can be compared and hashed."""
    wanted = keys.keys() if names is None else names
    return tuple(sorted((name, keys[name]) for name in wanted if name in keys))


def make_cells(scores: Sequence[Score]) -> tuple[list[Cell], list[str]]:
    """Average over seeds what is the same in everything else.

    Returns:
        The cells, and warnings about runs with the same setting and seed, of which the first counts.
    """
    scores, warnings = _settle_split_seeds(scores), []
    cells = []
    for same in group(scores, lambda score: frozen(score.keys)).values():
        by_seed = group(same, lambda score: score.seed)
        for seed, twins in by_seed.items():
            warnings += _disagreement(seed, twins)
        first = tuple(by_seed[seed][0] for seed in sorted(by_seed))
        cells.append(Cell(same[0].keys, first))
    return cells, warnings


def _settle_split_seeds(scores: Sequence[Score]) -> list[Score]:
    """Tell a split that is drawn anew with every run's seed from one that has the same seed in all runs.

    Where a run's seed equals the split's, either may be meant; the other runs on the same data set tell.
    """
    settled = []
    for same in group(scores, _data_source).values():
        fixed = {score.keys.get("dataset.seed") for score in same} - {RUNS_OWN, None}
        for score in same:
            ambiguous = score.keys.get("dataset.seed") == RUNS_OWN and fixed == {score.seed}
            settled.append(replace(score, keys=score.keys | {"dataset.seed": score.seed}) if ambiguous else score)
    return settled


def _data_source(score: Score) -> tuple:
    names = [key for key in score.keys if key.startswith("dataset.") and key != "dataset.seed"]
    return frozen(score.keys, ["dataset", *names])


def _disagreement(seed: int, twins: Sequence[Score]) -> list[str]:
    first, *others = twins
    different = [score for score in others if abs(score.acc - first.acc) > SAME]
    if not different:
        return []
    if is_zero_shot(first.keys["method"]):
        low, high = min(score.acc for score in twins), max(score.acc for score in twins)
        return [
            f"{describe(first.keys)}: zero-shot accuracy is not the same in all {len(twins)} runs of seed {seed} "
            f"({100 * low:.2f} to {100 * high:.2f}); the one of {first.path.parent} stands in the tables"
        ]
    listed = ", ".join(f"{score.path.parent} ({100 * score.acc:.2f})" for score in different)
    return [
        f"{describe(first.keys)}, seed {seed}: computed more than once with different results; "
        f"{first.path.parent} ({100 * first.acc:.2f}) counts, left out: {listed}"
    ]


def describe(keys: Keys) -> str:
    """A setting in a few words."""
    shots = "" if is_zero_shot(keys["method"]) else f", {shots_text(keys['shots'])}"
    return f"{data_name(keys['dataset'], keys['classes'])}, {keys['backbone']}, {keys['method']}{shots}"


def shots_text(shots: int) -> str:
    """ "1 shot", "16 shots", "all images"."""
    return "all images" if shots < 1 else f"{shots} shot{'s' if shots > 1 else ''}"


def label_part(key: str, value: Any) -> str:
    """How a key stands in a label: "M=16", "CSC", "end", "augmentation=none"."""
    if key == "n_ctx":
        return f"M={value}"
    if key == "class_specific":
        return "CSC" if value else "unified"
    if key == "class_token_position":
        return str(value)
    name = key.rpartition(".")[2] if key.startswith("method.") else key
    return f"{name}={value}"
