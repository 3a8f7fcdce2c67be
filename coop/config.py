"""The typed schema of the whole config, the checks before anything is loaded, and what a checked config names."""

import difflib
import inspect
import math
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from coop.clip.templates import clip_templates
from coop.clip.weights import PRECISIONS
from coop.data.transforms import parse_augmentation
from coop.errors import CoopError
from coop.optimizers import DEFAULTS, check_optimizer
from coop.schedule import PAPER_EPOCHS, epochs_by_shots

PACKAGE = Path(__file__).resolve().parent
# Keys of a group that the framework reads itself; all others are arguments of what `_target_` names.
METHOD_KEYS = {"name", "published"}
DATASET_KEYS = {"name": str, "template": str, "classes": str, "epochs": int | None, "manifest": str | None}


@dataclass
class BackboneConfig:
    model: str = MISSING
    pretrained: str | None = None
    name: str = "${.model}"
    precision: str = "fp32"
    cache_dir: str | None = None


@dataclass
class TrainerConfig:
    accelerator: str = "auto"
    devices: Any = "auto"
    num_nodes: int = 1
    strategy: str = "auto"
    precision: str = "32"
    tf32: bool = False
    compile: bool = False


@dataclass
class LoggerConfig:
    kind: str = "none"
    project: str = "coop"
    group: str | None = None
    tags: list[str] = field(default_factory=list)


@dataclass
class TrainConfig:
    shots: int = 16
    seed: int = 1
    data_root: str | None = None
    epochs: int | None = None
    steps: int | None = None
    epochs_by_shots: dict[int, int] = field(default_factory=lambda: dict(PAPER_EPOCHS))
    augmentation: str = "none"
    view_sampling: str = "per_image"
    validation: str = "choose"
    features: str = "online"
    cache_dir: str | None = None
    batch_size: int = 32
    num_workers: int = 2
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    dataset: dict[str, Any] = field(default_factory=lambda: {"manifest": None})
    method: dict[str, Any] = field(default_factory=dict)
    targets: list[str] = field(default_factory=list)
    optimizer: dict[str, Any] = field(default_factory=lambda: dict(DEFAULTS))
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)


@dataclass
class EvaluateConfig:
    run: str = MISSING
    seed: int | None = None
    targets: list[str] = field(default_factory=list)
    data_root: str | None = None
    dataset: dict[str, Any] | None = None
    backbone: BackboneConfig | None = None
    features: str = "online"
    cache_dir: str | None = None
    accelerator: str = "auto"
    num_workers: int = 2


ConfigStore.instance().store("train_schema", TrainConfig)
ConfigStore.instance().store("evaluate_schema", EvaluateConfig)
OmegaConf.register_new_resolver("coop.assets", lambda name: str(PACKAGE / "assets" / name), replace=True)
OmegaConf.register_new_resolver("coop.templates", lambda n, *more: [*clip_templates(n), *more], replace=True)


def conf_dir() -> Path:
    """Where the config files lie: inside an installed package, or beside it in a checkout."""
    installed = PACKAGE / "conf"
    return installed if installed.is_dir() else PACKAGE.parent / "conf"


def check(cfg: DictConfig) -> None:
    """Types and combinations, before anything is loaded.

    Raises:
        CoopError: names the key and what is allowed.
    """
    check_keys(cfg, TrainConfig)
    if cfg.shots < -1 or cfg.shots == 0:
        raise CoopError(
            f"shots={cfg.shots}: give 1 or more training images per class, or -1 for all (zero shots: method=zero_shot)"
        )
    for key in ("batch_size", "epochs", "steps"):
        if cfg[key] is not None and cfg[key] < 1:
            raise CoopError(f"{key}={cfg[key]}: must be at least 1")
    check_workers(cfg.num_workers)
    if not 0 <= cfg.seed < 2**32:
        raise CoopError(f"seed={cfg.seed}: must be from 0 to {2**32 - 1}")
    if cfg.trainer.precision not in AUTOCAST:
        raise CoopError(f"trainer.precision={cfg.trainer.precision}: allowed are {', '.join(AUTOCAST)}")
    if cfg.backbone.precision not in PRECISIONS:
        raise CoopError(f"backbone.precision={cfg.backbone.precision}: allowed are {', '.join(PRECISIONS)}")
    if cfg.logger.kind not in LOGGERS:
        raise CoopError(f"logger.kind={cfg.logger.kind}: allowed are {', '.join(LOGGERS)}")
    check_optimizer(OmegaConf.to_container(cfg.optimizer, resolve=True))
    views = parse_augmentation(cfg.augmentation)
    for key, allowed in (("view_sampling", VIEW_SAMPLINGS), ("validation", VALIDATIONS)):
        if cfg[key] not in allowed:
            raise CoopError(f"{key}={cfg[key]}: allowed are {', '.join(allowed)}")
    if cfg.view_sampling == "pooled" and not (views and views > 1):
        raise CoopError(f"view_sampling=pooled with augmentation={cfg.augmentation}: give augmentation=views:V, V > 1")
    if cfg.steps and cfg.epochs:
        raise CoopError(f"steps={cfg.steps} with epochs={cfg.epochs}: give one of the two; the other is null")
    check_features(cfg.features)
    check_dataset(cfg.dataset)
    check_method(cfg.method, cfg.validation)


# Lightning's names of precisions, and the dtype that each computes matrix products in (None: the weights' own).
AUTOCAST = {"32": None, "16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}
FEATURES = ("online", "cached")
LOGGERS = ("wandb", "csv", "none")
VIEW_SAMPLINGS = ("per_image", "pooled")
VALIDATIONS = ("choose", "none")


def check_workers(num_workers: int) -> None:
    """Raises CoopError for a negative number of processes."""
    if num_workers < 0:
        raise CoopError(f"num_workers={num_workers}: must not be negative")


def check_keys(cfg: DictConfig, schema: type) -> None:
    """Hold a config against its schema: Hydra lets +key=value add any key. Raises OmegaConfBaseException."""
    OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.to_container(cfg, resolve=False))


def check_features(features: str) -> None:
    """Raises CoopError for anything but "online" and "cached"."""
    if features not in FEATURES:
        raise CoopError(f"features={features}: allowed are {', '.join(FEATURES)}")


CLASSES = ("all", "base", "new")


def check_dataset(node: DictConfig) -> None:
    """The keys of a dataset config against the signature of its reader."""
    from coop.clip.templates import check_template

    reader = locate("dataset", node)
    check_arguments("dataset", node, reader, DATASET_KEYS.keys(), given={"data_root"})
    for key, annotation in DATASET_KEYS.items():
        _check_value(f"dataset.{key}", node.get(key), annotation)
    if node.epochs is not None and node.epochs < 1:
        raise CoopError(f"dataset.epochs={node.epochs}: must be at least 1")
    if node.classes not in CLASSES:
        raise CoopError(f"dataset.classes={node.classes}: allowed are {', '.join(CLASSES)}")
    check_template("dataset.template", node.template)


def check_method(node: DictConfig, validation: str = "choose") -> None:
    """The keys of a method config against the signature of its class, then the class's own checks."""
    from coop.methods import Method

    method = locate("method", node)
    if not (inspect.isclass(method) and issubclass(method, Method)):
        raise CoopError(f"method._target_={node._target_}: not a subclass of coop.methods.Method")
    check_arguments("method", node, method, METHOD_KEYS, given={"clip", "classnames"})
    method.check(**arguments(node, METHOD_KEYS))
    if validation == "none":
        method.check_without_validation(**arguments(node, METHOD_KEYS))


def locate(key: str, node: DictConfig) -> Callable:
    """The class or function that a node's `_target_` names."""
    if node is None or not node.get("_target_"):
        raise CoopError(f"{key}: choose one with {key}=NAME (it has no _target_)")
    try:
        target = hydra.utils.get_object(node._target_)
    except Exception as error:
        raise CoopError(f"{key}._target_={node._target_}: cannot be imported ({error})") from error
    if not callable(target):
        raise CoopError(f"{key}._target_={node._target_}: neither a class nor a function")
    return target


def arguments(node: DictConfig, own_keys: set[str]) -> dict[str, Any]:
    """The part of a node that goes to its `_target_`, as plain Python values."""
    plain = OmegaConf.to_container(node, resolve=True)
    return {key: value for key, value in plain.items() if key not in own_keys | {"_target_"}}


def parameters_of(target: Callable) -> dict[str, inspect.Parameter]:
    """The parameters of a class or function; where a subclass passes **kwargs on, its parent's too."""
    own = dict(inspect.signature(target).parameters)
    passes_on = [name for name, parameter in own.items() if parameter.kind is inspect.Parameter.VAR_KEYWORD]
    if inspect.isclass(target) and passes_on:
        del own[passes_on[0]]
        return parameters_of(target.__mro__[1]) | own
    return own


def check_arguments(key: str, node: DictConfig, target: Callable, own_keys: set[str], given: set[str]) -> None:
    """Hold a node's keys and types against the signature of what it names."""
    parameters = {name: p for name, p in parameters_of(target).items() if name not in given}
    values = arguments(node, own_keys)
    for name in values.keys() - parameters.keys():
        near = difflib.get_close_matches(name, parameters, n=3)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise CoopError(f"{key}.{name}: there is no such key; {hint}Allowed here: {', '.join(parameters)}")
    for name, parameter in parameters.items():
        if name in values:
            _check_value(f"{key}.{name}", values[name], parameter.annotation)
        elif parameter.default is inspect.Parameter.empty:
            raise CoopError(f"{key}.{name}: must be given")


def _check_value(key: str, value: Any, annotation: Any) -> None:
    if typing.get_origin(annotation) is typing.Literal:
        if value not in typing.get_args(annotation):
            raise CoopError(f"{key}={value}: allowed are {', '.join(map(str, typing.get_args(annotation)))}")
        return
    options = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    accepted = tuple(typing.get_origin(option) or option for option in options)
    if float in accepted:
        accepted += (int,)
    # bool is a subclass of int in Python, but n_ctx=true is a mistake.
    if not isinstance(value, accepted) or (isinstance(value, bool) and bool not in accepted):
        names = " or ".join(
            "null" if option is type(None) else getattr(option, "__name__", str(option)) for option in options
        )
        raise CoopError(f"{key}={value}: must be {names}, not {type(value).__name__}")


def build_method(node: DictConfig, clip, classnames: list[str]):
    """The method that a (checked) node describes."""
    return locate("method", node)(clip, classnames, **arguments(node, METHOD_KEYS))


def read_dataset(node: DictConfig, data_root: str | None):
    """The splits of the data set that a (checked) node describes."""
    return locate("dataset", node)(data_root, **arguments(node, DATASET_KEYS.keys()))


def resolve_epochs(cfg: DictConfig) -> int:
    """What the user says, else the data set's own number (ImageNet: 50), else the method's published rule by shots."""
    return cfg.epochs or cfg.dataset.epochs or epochs_by_shots(cfg.shots, cfg.epochs_by_shots)


def budget(cfg: DictConfig, n_train: int) -> tuple[int, int]:
    """Epochs, and steps in all (-1: those of the epochs), of a run on so many training images."""
    if not cfg.steps:
        return resolve_epochs(cfg), -1
    per_epoch = max(1, n_train // cfg.batch_size)  # the last incomplete batch is dropped, unless it is the only one
    return math.ceil(cfg.steps / per_epoch), cfg.steps
