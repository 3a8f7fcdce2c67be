"""Optimizers and learning rates: the named ones that methods are published with, and any of torch's by `_target_`."""

import inspect
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any

import hydra
import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from coop.errors import CoopError, no_such_key
from coop.optim import DEFAULTS
from coop.optim.schedule import learning_rate
from coop.system.validation import NOT_NEGATIVE, POSITIVE, between, check_value, one_of

OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
SCHEDULES = ("cosine", "constant")
RULES = {
    **dict.fromkeys(("lr", "warmup_lr", "eps"), Annotated[float, POSITIVE]),
    **dict.fromkeys(("momentum", "weight_decay", "eta_min"), Annotated[float, NOT_NEGATIVE]),
    "warmup_epochs": Annotated[int, between(0, 1_000_000)],
    "per": Annotated[str, one_of("epoch", "step")],
}
# What describes the schedule, and is no argument of an optimizer.
OF_SCHEDULE = ("warmup_epochs", "warmup_lr", "schedule", "eta_min", "per")


def build_optimizer(groups: Sequence[Mapping[str, Any]], options: Mapping) -> torch.optim.Optimizer:
    """SGD with momentum (CoOp, section 4.1), Adam with its L2 penalty in the gradient, AdamW, or a `_target_`.

    Args:
        groups: parameter groups.
        options: the config's node `optimizer`.
    """
    target, arguments = _optimizer(options)
    return target(list(groups), **arguments)


def build_schedule(optimizer: torch.optim.Optimizer, options: Mapping, total: int) -> LRScheduler:
    """The learning rate of each epoch or step.

    Args:
        optimizer: built from the same options.
        options: the config's node `optimizer`.
        total: T, the number of epochs or steps (`per`) of the run.
    """
    options = DEFAULTS | dict(options)
    if isinstance(options["schedule"], Mapping):
        return hydra.utils.instantiate(options["schedule"], optimizer)

    def factor(lr: float, t: int) -> float:
        if options["schedule"] == "constant" and t >= options["warmup_epochs"]:
            return 1.0
        return learning_rate(t, total, lr, options["warmup_epochs"], options["warmup_lr"], options["eta_min"]) / lr

    # LambdaLR multiplies the base rate, so that the schedule stays a pure function of time after a resume too. Each
    # group has a warm-up to its own rate.
    return LambdaLR(optimizer, [partial(factor, group["lr"]) for group in optimizer.param_groups])


def check_optimizer(options: Mapping) -> None:
    """Refuse what no optimizer takes, before anything is loaded.

    Raises:
        CoopError: names the key and what is allowed.
    """
    target, arguments = _optimizer(options)
    known = {*DEFAULTS, "_target_", *inspect.signature(target).parameters} - {"params"}
    for key in options.keys() - known:
        raise no_such_key(f"optimizer.{key}", sorted(known))
    given = DEFAULTS | dict(options)
    for key, annotation in RULES.items():
        if given[key] is None:
            raise CoopError(f"optimizer.{key}=null: expected a value, such as optimizer.{key}={DEFAULTS[key]}")
        check_value(f"optimizer.{key}", given[key], annotation)
    _check_schedule(given["schedule"])
    try:
        target([torch.zeros(1, requires_grad=True)], **arguments)
    except (TypeError, ValueError) as error:
        raise CoopError(f"optimizer: {target.__name__} does not take this: {error}") from error


def _optimizer(options: Mapping) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
    """The class, and what it is given of the options."""
    given = {key: value for key, value in dict(options).items() if key not in (*OF_SCHEDULE, "name", "_target_")}
    if options.get("_target_"):
        target = _subclass(options["_target_"], torch.optim.Optimizer, "optimizer._target_")
        takes = inspect.signature(target).parameters
        # Keys that the named optimizers have by default mean nothing to some others.
        return target, {key: value for key, value in given.items() if key in takes or key not in DEFAULTS}
    name = options.get("name", DEFAULTS["name"])
    if name not in OPTIMIZERS:
        raise CoopError(f"optimizer.name={name}: allowed are {', '.join(OPTIMIZERS)}, or optimizer._target_=CLASS")
    target = OPTIMIZERS[name]
    takes = inspect.signature(target).parameters
    return target, {key: value for key, value in (DEFAULTS | given).items() if key in takes}


def _subclass(path: str, base: type, key: str) -> type:
    try:
        found = hydra.utils.get_class(path)
    except Exception as error:
        raise CoopError(f"{key}={path}: cannot be imported ({error})") from error
    if not issubclass(found, base):
        raise CoopError(f"{key}={path}: not a {base.__name__} of torch")
    return found


def _check_schedule(schedule: Any) -> None:
    if isinstance(schedule, Mapping):
        _subclass(str(schedule.get("_target_")), LRScheduler, "optimizer.schedule._target_")
    elif schedule not in SCHEDULES:
        raise CoopError(
            f"optimizer.schedule={schedule}: allowed are {', '.join(SCHEDULES)}, or a node with _target_: CLASS"
        )


class StackedAdamW:
    """AdamW on S models at once, each with a learning rate and a weight decay of its own.

    Args:
        tensors: of all models, (S, ...), changed in place.
        weight_decay: (S).
        betas: decay of the means of gradients and of their squares.
        eps: added to the root of the latter.
    """

    def __init__(
        self,
        tensors: Sequence[Tensor],
        weight_decay: Tensor,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ):
        self.tensors, self.weight_decay, self.betas, self.eps, self.steps = tensors, weight_decay, betas, eps, 0
        self.states = [tuple(torch.zeros_like(x) for _ in range(3)) for x in tensors]

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], lr: Tensor) -> None:
        """One step along gradients of the tensors' shapes, at learning rates (S)."""
        self.steps += 1
        first, second = self.betas
        of_mean, of_root = 1 - first**self.steps, math.sqrt(1 - second**self.steps)
        for x, gradient, (mean, square, change) in zip(self.tensors, gradients, self.states, strict=True):
            shape = (-1, *[1] * (x.ndim - 1))
            rate, decay = lr.view(shape), self.weight_decay.view(shape)
            mean.lerp_(gradient, 1 - first)
            square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
            torch.sqrt(square, out=change).add_(self.eps * of_root)
            torch.div(mean, change, out=change)
            x.mul_(1 - rate * decay).addcmul_(change, rate, value=-of_root / of_mean)
