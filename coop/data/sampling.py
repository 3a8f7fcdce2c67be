"""Few-shot sampling and base/new class selection: pure functions of lists (CoOp, section 4.1; CoCoOp, section 4.1)."""

import logging
import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

from PIL.Image import Image

from coop.errors import CoopError

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger("coop")

PARTS = ("train", "val", "test")
MAX_VAL_SHOTS = 4
MIN_CLASSES = 2


class Item(NamedTuple):
    """One image: where it lies, its label (an index from 0) and the name of its class."""

    path: str
    label: int
    classname: str


@dataclass(frozen=True)
class Splits:
    """What a reader returns.

    Attributes:
        train: all training images, in the order that sampling depends on.
        val: validation images; empty where a data set has none (ImageNet).
        test: test images.
        classnames: class names by label; their number is K. A label may have no image.
        origin: where the split comes from: "published", "generated" or "own".
        preprocess: applied to each opened image before the backbone's transform (the bundled shifted sets).
    """

    train: list[Item]
    val: list[Item]
    test: list[Item]
    classnames: list[str]
    origin: str = "published"
    preprocess: Callable[[Image], Image] | None = field(default=None, compare=False)

    def items(self) -> list[Item]:
        """All images."""
        return [*self.train, *self.val, *self.test]

    def labels(self, part: str) -> "Tensor":
        """Labels (N) of the images of "train", "val" or "test"."""
        import torch

        return torch.tensor([item.label for item in getattr(self, part)], dtype=torch.long)


def few_shot(
    train: Sequence[Item], val: Sequence[Item], shots: int | Sequence[int], seed: int
) -> tuple[list[Item], list[Item]]:
    """Sample `shots` training images and `min(shots, 4)` validation images of each class.

    Reproduces the original code's choice image for image. The generator is this call's own, so that nothing else that
    draws random numbers can change what is sampled.

    Args:
        train: training images.
        val: validation images, sampled after the training images from the same generator.
        shots: images per class, less than 1 meaning all; or a number for each label. A class with fewer images gives
            all it has.
        seed: seed of the generator; 0 is a seed like any other.

    Returns:
        The sampled training and validation lists, grouped by class in order of first appearance.
    """
    if isinstance(shots, int) and shots < 1:
        return list(train), list(val)
    rng = random.Random(seed)
    count_of = (lambda label: shots) if isinstance(shots, int) else shots.__getitem__
    return _sample(train, count_of, rng), _sample(val, lambda label: min(count_of(label), MAX_VAL_SHOTS), rng)


def _sample(items: Sequence[Item], count_of: Callable[[int], int], rng: random.Random) -> list[Item]:
    by_label = defaultdict(list)
    for item in items:
        by_label[item.label].append(item)
    sampled: list[Item] = []
    for label, group in by_label.items():
        count = count_of(label)
        sampled += rng.sample(group, count) if len(group) >= count else group
    return sampled


def select_classes(items: Sequence[Item], num_classes: int, classes: str) -> list[Item]:
    """Keep the base half (the first ceil(K / 2) labels), the new half, or all; relabel from 0 (CoCoOp, section 4.1)."""
    kept = selected_labels(num_classes, classes)
    return [item._replace(label=item.label - kept.start) for item in items if item.label in kept]


def selected_labels(num_classes: int, classes: str) -> range:
    """Labels of the chosen half: `classes` is "all", "base" or "new"."""
    middle = math.ceil(num_classes / 2)
    try:
        return {"all": range(num_classes), "base": range(middle), "new": range(middle, num_classes)}[classes]
    except KeyError:
        raise CoopError(f"dataset.classes={classes}: allowed are all, base, new") from None


def sample(splits: Splits, shots: int | Sequence[int], seed: int, classes: str = "all") -> Splits:
    """The protocol of one run: few-shot sampling first, then the choice of classes, which are relabeled from 0.

    Warns of classes that have fewer training images than `shots` (a number, or one for each label).

    Raises:
        CoopError: fewer than two classes are left, or none of their images.
    """
    _check_number(len(splits.classnames), classes)
    train, val = few_shot(splits.train, splits.val, shots, seed)
    _warn_of_small_classes(train, shots, splits.classnames)
    labels, parts = selected_labels(len(splits.classnames), classes), {"train": train, "val": val, "test": splits.test}
    names = splits.classnames[labels.start : labels.stop]
    selected = {part: select_classes(items, len(splits.classnames), classes) for part, items in parts.items()}
    for part in ("train", "test"):
        if getattr(splits, part) and not selected[part]:
            raise CoopError(
                f"dataset.classes={classes}: none of the {part} images belongs to these classes "
                f"({', '.join(names[:5])}); add images, or set dataset.classes=all"
            )
    return replace(splits, classnames=names, **selected)


def _check_number(number: int, classes: str) -> None:
    """With one class every image is right, whatever is learned."""
    left = len(selected_labels(number, classes))
    if left >= MIN_CLASSES:
        return
    have = f"the data set has {number} class{'es' if number != 1 else ''}"
    if classes == "all":
        raise CoopError(f"dataset: {have}; a classifier needs at least {MIN_CLASSES}. Add folders or labels of others")
    raise CoopError(
        f"dataset.classes={classes}: {have}, of which {left} would be left; a classifier needs at least {MIN_CLASSES}. "
        f"Add classes, or set dataset.classes=all"
    )


def _warn_of_small_classes(train: Sequence[Item], shots: int | Sequence[int], classnames: Sequence[str]) -> None:
    count = Counter(item.label for item in train)
    wanted = [shots] * len(classnames) if isinstance(shots, int) else shots
    small = [f"{name} ({count[label]})" for label, name in enumerate(classnames) if count[label] < wanted[label]]
    if small and train:  # without any, a data set to test on
        shown = ", ".join(small[:5]) + (f" and {len(small) - 5} more" if len(small) > 5 else "")
        of = f"={shots}" if isinstance(shots, int) else " says"
        log.warning("fewer training images than shots%s, all are used: %s", of, shown)
