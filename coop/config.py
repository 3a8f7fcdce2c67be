"""The typed schema of the whole config, the checks before anything is loaded, and what a checked config names."""

import inspect
import math
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Annotated, Any

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from coop.clip import PRECISIONS
from coop.clip.templates import Template, clip_templates
from coop.errors import CoopError, no_such_key
from coop.optim import DEFAULTS
from coop.optim.schedule import epochs_by_shots
from coop.system.files import subfolder
from coop.system.validation import NOT_EMPTY, Rule, between, check_rules, check_value, one_of

PACKAGE = Path(__file__).resolve().parent


# Lightning's names of precisions, and torch's dtype that each computes matrix products in (None: the weights' own).
AUTOCAST = {"32": None, "16-mixed": "float16", "bf16-mixed": "bfloat16"}
LOGGERS = ("wandb", "csv", "none")
CLASSES = ("all", "base", "new")
PROTOCOLS = ("few_shot", "base_to_new", "cross_dataset", "domain_generalization")

# Beyond these nobody means it: a slip of the keyboard is answered before it fills the memory.
MOST_IMAGES, MOST_EPOCHS, MOST_PROCESSES = 10_000_000, 1_000_000, 1024
SHOTS = Rule(
    lambda shots: type(shots) is int and (shots == -1 or 1 <= shots <= MOST_IMAGES),
    f"give 1 or more training images per class (at most {MOST_IMAGES}), or -1 for all (zero shots: method=zero_shot); "
    "numbers of each class: a list, or a .csv or .json file",
)
DEVICES = Rule(
    lambda devices: _are_devices(devices),
    f"give a number from 1 to {MOST_PROCESSES}, -1 or auto for all, or a list of device numbers such as [0,1]",
)

EPOCHS_BY_SHOTS = Rule(
    lambda rule: rule is None or _are_epochs(rule),
    f"give numbers of shots from 1 with epochs from 1 to {MOST_EPOCHS}, such as {{4: 100, 16: 200}}; null: the paper's",
)

Shots = Annotated[Any, SHOTS]  # a list or a file of them has become `dataset.counts`
Seed = Annotated[int, between(0, 2**32 - 1)]
Epochs = Annotated[int, between(1, MOST_EPOCHS)]
EpochsByShots = Annotated[Any, EPOCHS_BY_SHOTS]  # Any: Hydra merges one mapping into another
Workers = Annotated[int, between(0, MOST_PROCESSES)]
Features = Annotated[str, one_of("online", "cached")]
Text = Annotated[str, NOT_EMPTY]


def _are_devices(devices: Any) -> bool:
    if isinstance(devices, str):
        numbers = devices.split(",")
        return devices == "auto" or devices == "-1" or all(part.strip().isdecimal() for part in numbers)
    if isinstance(devices, list):
        return bool(devices) and all(type(number) is int and 0 <= number <= MOST_PROCESSES for number in devices)
    return type(devices) is int and (devices == -1 or 1 <= devices <= MOST_PROCESSES)


def _are_epochs(rule: Any) -> bool:
    if not isinstance(rule, dict) or not rule:
        return False
    numbers = [*rule, *rule.values()]
    return all(type(number) is int and 1 <= number <= MOST_EPOCHS for number in numbers)


@dataclass
class BackboneConfig:
    model: Text = MISSING
    pretrained: str | None = None
    name: Text = "${.model}"
    precision: Annotated[str, one_of(*PRECISIONS)] = "fp32"
    cache_dir: str | None = None


@dataclass
class TrainerConfig:
    accelerator: Text = "auto"
    devices: Annotated[Any, DEVICES] = 1
    num_nodes: Annotated[int, between(1, MOST_PROCESSES)] = 1
    strategy: Text = "auto"
    precision: Annotated[str, one_of(*AUTOCAST)] = "32"
    tf32: bool = False
    compile: bool = False


@dataclass
class LoggerConfig:
    kind: Annotated[str, one_of(*LOGGERS)] = "none"
    project: Text = "coop"
    group: str | None = None
    tags: list[str] = field(default_factory=list)


@dataclass
class TrainConfig:
    shots: Shots = 16
    seed: Seed = 1
    data_root: str | None = None
    epochs: Epochs | None = None
    steps: Annotated[int, between(1, MOST_IMAGES)] | None = None
    steps_per_shot: Annotated[int, between(1, MOST_IMAGES)] | None = None
    epochs_by_shots: EpochsByShots = None
    augmentation: str = "none"
    view_sampling: Annotated[str, one_of("per_image", "pooled")] = "per_image"
    protocol: Annotated[str, one_of(*PROTOCOLS)] = "few_shot"  # which of a method's published settings it takes
    validation: Annotated[str, one_of("choose", "none")] = "choose"
    features: Features = "cached"
    cache_dir: str | None = None
    batch_size: Annotated[int, between(1, MOST_IMAGES)] = 32
    num_workers: Workers = 2
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    dataset: dict[str, Any] = field(default_factory=lambda: {"manifest": None, "counts": None})
    method: dict[str, Any] = field(default_factory=dict)
    targets: list[str] = field(default_factory=list)
    optimizer: dict[str, Any] = field(default_factory=lambda: dict(DEFAULTS))
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)


@dataclass
class EvaluateConfig:
    run: Text = MISSING
    seed: Seed | None = None
    protocol: str | None = None  # of training; overlays of coop.train that name targets serve here too
    targets: list[str] = field(default_factory=list)
    data_root: str | None = None
    dataset: dict[str, Any] | None = None
    backbone: BackboneConfig | None = None
    features: Features = "cached"
    cache_dir: str | None = None
    accelerator: Text = "auto"
    num_workers: Workers = 2


# Keys of a dataset config that the framework reads itself; all others are arguments of what `_target_` names.
DATASET_KEYS = {
    "name": Text,
    "template": Template,
    "classes": Annotated[str, one_of(*CLASSES)],
    "epochs": Epochs | None,
    "manifest": str | None,
    "counts": list[Any] | None,  # a number of shots for each class, by label or as [class name, number]
    "manifest_sha256": str | None,  # only in the config.yaml of a run: the manifest's content
}
METHOD_KEYS = {"name": Text, "published": Any}


ConfigStore.instance().store("train_schema", TrainConfig)
ConfigStore.instance().store("evaluate_schema", EvaluateConfig)
OmegaConf.register_new_resolver("coop.over", lambda number, by: number / by, replace=True)
OmegaConf.register_new_resolver("coop.assets", lambda name: str(PACKAGE / "assets" / name), replace=True)
OmegaConf.register_new_resolver("coop.one_folder", subfolder, replace=True)
OmegaConf.register_new_resolver("coop.templates", lambda n, *more: [*clip_templates(n), *more], replace=True)


def conf_dir() -> Path:
    """Where the config files lie: inside an installed package, or beside it in a checkout."""
    installed = PACKAGE / "conf"
    return installed if installed.is_dir() else PACKAGE.parent / "conf"


def check(cfg: DictConfig) -> None:
    """Types, bounds and combinations, before anything is loaded.

    Raises:
        CoopError: names the key and what is allowed.
    """
    check_schema(cfg, TrainConfig)
    views = parse_augmentation(cfg.augmentation)
    if cfg.view_sampling == "pooled" and not (views and views > 1):
        raise CoopError(f"view_sampling=pooled with augmentation={cfg.augmentation}: give augmentation=views:V, V > 1")
    if cfg.steps and cfg.epochs:
        raise CoopError(f"steps={cfg.steps} with epochs={cfg.epochs}: give one of the two; the other is null")
    if cfg.shots == -1 and cfg.steps_per_shot and not (cfg.steps or cfg.epochs):
        raise CoopError(
            f"shots=-1: method={cfg.method.name} takes {cfg.steps_per_shot} steps for each shot; "
            "give steps=N or epochs=N"
        )
    check_dataset(cfg.dataset)
    check_backbone(cfg.backbone)

    from coop.optim.optimizers import check_optimizer  # brings torch, which no mistake above has to wait for

    check_optimizer(OmegaConf.to_container(cfg.optimizer, resolve=True))
    check_method(cfg.method, cfg.validation)
    check_words(cfg.method, cfg.backbone.model)


def check_evaluation(cfg: DictConfig) -> None:
    """The same of the config of coop.evaluate."""
    check_schema(cfg, EvaluateConfig)
    if cfg.backbone is not None:
        check_backbone(cfg.backbone)


MOST_VIEWS = 1000  # each is encoded before the first step, and kept in memory


def parse_augmentation(augmentation: str) -> int | None:
    """How many fixed views an image has: "none" 1, "views:V" V, "online" None (a new view every time).

    Raises:
        CoopError: anything else.
    """
    if augmentation == "online":
        return None
    if augmentation == "none":
        return 1
    kind, _, count = augmentation.partition(":")
    if kind == "views" and count.isascii() and count.isdecimal() and 1 <= int(count[:9]) <= MOST_VIEWS:
        return int(count)
    raise CoopError(f"augmentation={augmentation}: allowed are online, none, views:V (V from 1 to {MOST_VIEWS})")


def check_schema(cfg: DictConfig, schema: type) -> None:
    """Check a config against its schema: Hydra lets +key=value add any key, and knows no bounds.

    Raises:
        OmegaConfBaseException: an unknown key, or a value of the wrong type.
        CoopError: a value out of bounds.
    """
    OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.to_container(cfg, resolve=False))
    check_rules(cfg, schema)


KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}


def expected(key: str, value: str) -> str | None:
    """What a key of the schema takes and how it is written, for a value that it does not take.

    Args:
        key: with dots.
        value: as it was given on the command line.

    Returns:
        The end of a message; None for a key that no schema has.
    """
    for schema in (TrainConfig, EvaluateConfig):
        *groups, name = key.split(".")
        for group in groups:
            schema = typing.get_type_hints(schema).get(group) if is_dataclass(schema) else None
        if is_dataclass(schema) and name in schema.__dataclass_fields__:
            return _expected(key, value, typing.get_type_hints(schema)[name], schema.__dataclass_fields__[name].default)
    return None


def _expected(key: str, value: str, annotation: Any, default: Any) -> str:
    word = "" if value in ("", "null") else value
    if typing.get_origin(annotation) is list:
        return f"expected a list: {key}=[{word}]"
    if typing.get_origin(annotation) is dict:
        known = f" (keys: {', '.join(DEFAULTS)})" if key == "optimizer" else ""
        return f"expected keys, such as {key}.name={word or '...'}{known}"
    kinds = typing.get_args(annotation) or (annotation,)
    if group := next((kind for kind in kinds if is_dataclass(kind)), None):
        names = list(group.__dataclass_fields__)
        example = f"{key}.name={word}" if word and "name" in names else f"{key}.{names[0]}=..."
        return f"expected keys, such as {example} (keys: {', '.join(names)})"
    wanted = " or ".join(KINDS.get(kind, getattr(kind, "__name__", str(kind))) for kind in kinds)
    known = default not in (MISSING, None) and not isinstance(default, type(field()))
    return f"expected {wanted}" + (f", such as {key}={default}" if known else "")


def check_dataset(node: DictConfig) -> None:
    """The keys of a dataset config against the signature of its reader."""
    reader = locate("dataset", node)
    if next(iter(_parameters("dataset", node, reader)), None) != "data_root":
        raise CoopError(
            f"dataset._target_={node._target_}: not a reader, a function (data_root, *, ...) that returns "
            "coop.data.Splits"
        )
    check_arguments("dataset", node, reader, DATASET_KEYS, given={"data_root"})


def check_backbone(node: DictConfig) -> None:
    """The name of a backbone against what open_clip has."""
    from coop.clip.loading import check_source

    check_source(node.model, node.pretrained)


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


def check_words(node: DictConfig, model: str) -> None:
    """A method's own checks of what a backbone's tokenizer decides on, where that is known before it is loaded."""
    from coop.clip.loading import clip_tokenizer

    if tokenizer := clip_tokenizer(model):
        locate("method", node).check_words(tokenizer, **arguments(node, METHOD_KEYS))


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


def arguments(node: DictConfig, own_keys: Collection[str]) -> dict[str, Any]:
    """The part of a node that goes to its `_target_`, as plain Python values."""
    plain = OmegaConf.to_container(node, resolve=True)
    return {key: value for key, value in plain.items() if key != "_target_" and key not in own_keys}


def check_arguments(key: str, node: DictConfig, target: Callable, own_keys: Mapping[str, Any], given: set[str]) -> None:
    """Check a node's keys and types against the signature of what it names."""
    parameters = {name: p for name, p in _parameters(key, node, target).items() if name not in given}
    values = arguments(node, own_keys)
    for name in values.keys() - parameters.keys():
        raise no_such_key(f"{key}.{name}", parameters)
    for name, parameter in parameters.items():
        if name in values:
            annotation = Any if parameter.annotation is inspect.Parameter.empty else parameter.annotation
            check_value(f"{key}.{name}", values[name], annotation)
        elif parameter.default is inspect.Parameter.empty:
            raise CoopError(f"{key}.{name}: must be given")
    plain = OmegaConf.to_container(node, resolve=True)
    for name, annotation in own_keys.items():
        check_value(f"{key}.{name}", plain.get(name), annotation)


def _parameters(key: str, node: DictConfig, target: Callable) -> Mapping[str, inspect.Parameter]:
    """The parameters of a class or function; where a subclass passes **kwargs on, its parent's too."""
    try:
        own = dict(inspect.signature(target, eval_str=True).parameters)
    except ValueError as error:  # of some built-in functions
        raise CoopError(f"{key}._target_={node._target_}: {error}") from error
    passes_on = [name for name, parameter in own.items() if parameter.kind is inspect.Parameter.VAR_KEYWORD]
    if inspect.isclass(target) and passes_on:
        del own[passes_on[0]]
        return {**_parameters(key, node, target.__mro__[1]), **own}
    return own


def autocast_dtype(precision: str):
    """The torch.dtype of matrix products at a precision of the config (`trainer.precision`); None: the weights' own."""
    import torch

    return AUTOCAST[precision] and getattr(torch, AUTOCAST[precision])


def build_method(node: DictConfig, clip, classnames: list[str]):
    """The method that a (checked) node describes."""
    return locate("method", node)(clip, classnames, **arguments(node, METHOD_KEYS))


def resolve_epochs(cfg: DictConfig) -> int:
    """What the user says, else the data set's own number (ImageNet: 50), else the method's rule by shots, or CoOp's."""
    return cfg.epochs or cfg.dataset.epochs or epochs_by_shots(cfg.shots, cfg.epochs_by_shots)


def budget(cfg: DictConfig, n_train: int) -> tuple[int, int]:
    """Epochs, and steps in all (-1: those of the epochs), of a run on so many training images.

    What the user says, steps or epochs, comes before the method's published steps, and these before epochs.
    """
    published = None if cfg.epochs else cfg.steps_per_shot
    steps = cfg.steps or (published and published * cfg.shots)
    if not steps:
        return resolve_epochs(cfg), -1
    per_epoch = max(1, n_train // cfg.batch_size)  # the last incomplete batch is dropped, unless it is the only one
    return math.ceil(steps / per_epoch), steps
