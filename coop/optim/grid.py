"""Settings of AdamW tried side by side: many small models in the time of one, the best on validation images kept."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from coop.errors import CoopError
from coop.optim.optimizers import StackedAdamW
from coop.optim.schedule import linear_warmup

log = logging.getLogger("coop")

SEARCH_FROM = 0.1
AT_ONCE = 128  # validation images; bounds the memory
#: S models, tensors (S, ...), of features of B samples, by their kinds, to logits (B, S, K): scores(x, *tensors).
Scores = Callable[..., Tensor]
#: Features of N samples as a function of rows (B), and labels (N).
Samples = tuple[Callable[[Tensor], Sequence[Tensor]], Tensor]
#: Features of all validation images as `Scores` takes them, and labels (N).
Validation = tuple[Sequence[Tensor], Tensor]


def of_kinds(kinds: Sequence[Tensor]) -> Callable[[Tensor], list[Tensor]]:
    """Features of rows that `Grid.batches` made: an equal part of each kind of samples, which follow each other.

    Kinds of one shape are gathered together.
    """
    if len({kind.shape[1:] for kind in kinds}) == 1:
        kinds = [torch.cat(list(kinds))]
    starts = [sum(len(kind) for kind in kinds[:i]) for i in range(len(kinds))]

    def features(rows: Tensor) -> list[Tensor]:
        parts = rows.chunk(len(kinds))
        return [kind[part - start] for kind, part, start in zip(kinds, parts, starts, strict=True)]

    return features


def by_each(x: Tensor, weights: Tensor) -> Tensor:
    """Features (S, B, D), or (B, D) that S models share, by weights (S, K, D), to (S, B, K).

    In the order of products whose gradients lie in memory as the weights do: AdamW's steps are half of a fit.
    """
    if x.ndim == 2:
        return F.linear(x, weights.flatten(0, 1)).unflatten(1, weights.shape[:2]).transpose(0, 1)
    return (weights @ x.mT).mT


@dataclass
class Grid:
    """Every combination of these values is a setting; each model is trained as if it were alone.

    Args:
        lr: learning rates.
        weight_decay: decoupled ones (AdamW).
        batch_size: of a step.
        iterations: T, of each setting.
        warmup: steps of a rising learning rate (`coop.optim.schedule.linear_warmup`).
        interval: steps between validations, the first of which comes after the first step.
    """

    lr: Sequence[float]
    weight_decay: Sequence[float]
    batch_size: Sequence[int]
    iterations: int
    warmup: int = 50
    interval: int = 100

    def check_single(self, why: str) -> None:
        """Raises CoopError, which begins with the reason, where there are several settings to choose from."""
        for key in ("lr", "weight_decay", "batch_size"):
            if len(values := getattr(self, key)) > 1:
                raise CoopError(f"{why}: nothing to choose among method.{key}={values} on; give one: [{values[0]}]")

    def batches(self, *counts: int) -> dict[int, Tensor]:
        """Rows (T, B) of all batches by their size, an equal part from each kind of samples.

        A size whose part is not below the number of samples of every kind is left out, unless all are.

        Args:
            counts: number of samples of each kind, which follow each other.
        """
        generator = torch.Generator().manual_seed(torch.initial_seed())  # the run's seed
        room, parts = min(counts), {size: size // len(counts) for size in self.batch_size}
        fitting = {size: part for size, part in parts.items() if part < room}
        return {
            size: torch.cat([sum(counts[:i]) + self._shuffled(n, part, generator) for i, n in enumerate(counts)], dim=1)
            for size, part in (fitting or {room * len(counts): room}).items()
        }

    def _shuffled(self, count: int, size: int, generator: torch.Generator) -> Tensor:
        """Rows (T, size) of passes over so many samples, each in an order of its own, without its incomplete batch."""
        whole = count // size
        passes = -(-self.iterations // whole)
        orders = [torch.randperm(count, generator=generator)[: whole * size] for _ in range(passes)]
        return torch.cat(orders).view(-1, size)[: self.iterations]

    def descend(
        self, start: Sequence[Tensor], scores: Scores, samples: Samples, rows: Tensor
    ) -> Iterator[tuple[Tensor, list[Tensor]]]:
        """Train one model for each pair of lr and weight_decay, in this order (the last changes fastest).

        Args:
            start: tensors of every model, on the labels' device.
            scores: logits of all models.
            samples: N of them.
            rows: (T, B), the samples of each step.

        Yields:
            Losses (S) before each step, and the models after it.
        """
        (x, y), (lr, decay) = samples, zip(*product(self.lr, self.weight_decay), strict=True)
        models = [tensor.expand(len(lr), *tensor.shape).clone().requires_grad_() for tensor in start]
        rates = torch.tensor([linear_warmup(self.iterations, each, self.warmup) for each in lr], device=y.device).T
        optimizer = StackedAdamW(models, torch.tensor(decay, dtype=models[0].dtype, device=y.device))
        for batch, rate in zip(rows.to(y.device), rates, strict=True):
            with torch.enable_grad():
                logits, labels = scores(x(batch), *models).flatten(0, 1), y[batch].repeat_interleave(len(lr))
                losses = F.cross_entropy(logits, labels, reduction="none").view(-1, len(lr)).mean(dim=0)
                gradients = torch.autograd.grad(losses.sum(), models)
            optimizer.step(gradients, rate)
            yield losses.detach(), [model.detach() for model in models]

    @torch.no_grad()
    def fit(
        self, tensors: Sequence[Tensor], scores: Scores, samples: Samples, rows: Mapping[int, Tensor], val: Validation
    ) -> dict[str, float]:
        """Leave the first best setting at its first best step; without validation images the only one at its last.

        Args:
            tensors: of the model: what all settings start from, and then what is learned.
            scores: see `descend`.
            samples: to train on.
            rows: see `descend`, by batch size.
            val: to choose on.

        Returns:
            What was chosen.

        Raises:
            CoopError: several settings, and no validation images.
        """
        if not len(val[1]):
            self.check_single("no validation images")
        tried = [self._best_steps(self.descend(tensors, scores, samples, each), scores, val) for each in rows.values()]
        most = torch.stack([correct for correct, _, _ in tried], dim=1)
        pair, size = divmod(int(most.flatten().argmax()), len(tried))
        _, at, models = tried[size]
        lr, decay = list(product(self.lr, self.weight_decay))[pair]
        chosen = {"lr": lr, "weight_decay": decay, "batch_size": list(rows)[size], "iteration": int(at[pair])}
        for tensor, learned in zip(tensors, models, strict=True):
            tensor.copy_(learned[pair])
        return chosen if len(val[1]) else {}

    def _best_steps(
        self, steps: Iterator[tuple[Tensor, list[Tensor]]], scores: Scores, val: Validation
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """How many validation images each model has right at best (S), when that was (S), and its tensors then."""
        (x, y), most = val, None
        for t, (_, models) in enumerate(steps):
            if not len(y) or t % self.interval:
                continue
            parts = zip(*(kind.split(AT_ONCE) for kind in x), strict=True)
            logits = torch.cat([scores(part, *models) for part in parts])
            correct = (logits.argmax(dim=2) == y[:, None]).sum(dim=0)
            if most is None:
                most, at, kept = torch.full_like(correct, -1), torch.zeros_like(correct), models
            better = correct > most
            most, at = torch.where(better, correct, most), torch.where(better, t, at)
            kept = [torch.where(better.view(-1, *[1] * (k.ndim - 1)), m, k) for m, k in zip(models, kept, strict=True)]
        if most is None:
            most, kept = torch.zeros(len(models[0])), models
            at = torch.full_like(most, t)
        return most, at, kept


def first_best(logits: Iterable[Tensor], labels: Tensor) -> tuple[int, int]:
    """Which of the logits (A, N, K), and which row of it, is the first that is right most often for labels (N)."""
    correct = torch.stack([(each.argmax(dim=-1) == labels).sum(dim=-1) for each in logits])
    return divmod(int(correct.flatten().argmax()), correct.shape[1])


def search_pair(
    ways: Mapping[str, tuple[float, int]], logits: Callable[[float, Tensor], Tensor], labels: Tensor
) -> dict[str, float]:
    """The first best pair of values, each of so many equal steps from `SEARCH_FROM` to below an end.

    Args:
        ways: end and number of steps of two values, by name.
        logits: (A, N, K) of one of the first and all (A, 1, 1) of the second.
        labels: (N).
    """
    (first, outer), (second, inner) = (
        (key, [SEARCH_FROM + (end - SEARCH_FROM) * step / count for step in range(count)])
        for key, (end, count) in ways.items()
    )
    tensor = torch.tensor(inner, device=labels.device)[:, None, None]
    at, row = first_best((logits(value, tensor) for value in outer), labels)
    for key, last in ((first, at == len(outer) - 1), (second, row == len(inner) - 1)):
        if last:
            log.warning("the best %s is where its search ends; try a larger method.%s_max", key, key)
    return {first: outer[at], second: inner[row]}
