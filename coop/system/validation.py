"""Values from outside (config keys, options, files) held against types, with one message that names the place."""

import json
import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from omegaconf import OmegaConf
from pydantic import AfterValidator, BaseModel, ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError

from coop.errors import CoopError

STRICT = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
LAX = ConfigDict(allow_inf_nan=False)
RULE = "rule"  # the type of a broken Rule's error
MOST_CLASSES = 100_000  # more than any data set has
SHOWN = 200  # characters of a value in a message
# pydantic's words for what a JSON file may hold, and ours.
JSON_TYPES = {
    "Input should be": "must be",
    "a valid array": "a list",
    "an object": "an object {...}",
    "a valid string": "text",
    "a valid integer": "a whole number",
}

Model = TypeVar("Model", bound=BaseModel)


class Rule(AfterValidator):
    """What a value has to be beside its type; written as `Annotated[int, Rule(...)]`.

    Args:
        holds: whether a value of the right type is allowed.
        words: what is allowed, as the end of a message: "must be at least 1".
    """

    def __init__(self, holds: Callable[[Any], bool], words: str):
        def check(value: Any) -> Any:
            if not holds(value):
                raise PydanticCustomError(RULE, "{words}", {"words": words})
            return value

        super().__init__(check)


def between(low: float, high: float = math.inf) -> Rule:
    """A number from low to high, both allowed."""
    limit = "" if high == math.inf else f" and at most {high}"
    return Rule(lambda value: low <= value <= high, f"must be at least {low}{limit}")


def one_of(*values: Any) -> Rule:
    """One of a few values."""
    return Rule(values.__contains__, f"allowed are {', '.join(map(str, values))}")


POSITIVE = Rule(lambda value: value > 0, "must be a positive number")
NOT_NEGATIVE = Rule(lambda value: value >= 0, "must not be negative")
NOT_EMPTY = Rule(lambda value: bool(value.strip() if isinstance(value, str) else value), "must not be empty")


def check_value(key: str, value: Any, annotation: Any) -> None:
    """Check a value against a type, strictly: 1 is no bool, true no int, and nan no float.

    Raises:
        CoopError: `key=value: ` and what is allowed.
    """
    _validated(key, value, annotation, strict=True)


def read_text(key: str, text: str, annotation: Any) -> Any:
    """The value of an option `key=text` of the command line; what is text by its type stays as it is.

    Raises:
        CoopError: `key=text: ` and what is allowed.
    """
    is_null = text == "null" and type(None) in typing.get_args(annotation)
    return _validated(key, None if is_null else text, annotation, strict=False)


def _validated(key: str, value: Any, annotation: Any, strict: bool) -> Any:
    try:
        return _adapter(annotation, strict).validate_python(value)
    except ValidationError as error:
        broken = {one["type"]: one for one in reversed(error.errors())}
        if RULE in broken:  # says more than that the value is not one of the other types either; of a list, one entry
            value, words = broken[RULE]["input"], broken[RULE]["msg"]
        elif "finite_number" in broken:
            words = "must be a finite number"
        else:
            words = f"{must_be(annotation)}, not {type(value).__name__}"
        text = str(value) if isinstance(value, str | float) else _as_json(value)
        raise CoopError(f"{key}={_cut(text)}: {words}") from None


@cache
def _adapter(annotation: Any, strict: bool) -> TypeAdapter:
    try:
        return TypeAdapter(annotation, config=STRICT if strict else LAX)
    except PydanticUserError:  # the type has a config of its own
        return TypeAdapter(annotation)


def check_rules(cfg: Mapping[str, Any], schema: type, prefix: str = "") -> None:
    """Check the values of a config against the rules that the fields of its schema are annotated with.

    Raises:
        CoopError: names the key and what is allowed.
    """
    for name, annotation in typing.get_type_hints(schema, include_extras=True).items():
        key, options = f"{prefix}{name}", (annotation, *typing.get_args(annotation))
        if OmegaConf.is_missing(cfg, name):
            raise CoopError(f"{key}: must be given; add {key}=...")
        value, group = cfg[name], next((one for one in options if isinstance(one, type) and is_dataclass(one)), None)
        if group is not None and value is not None:
            check_rules(value, group, f"{key}.")
        elif group is None and typing.get_origin(annotation) is not dict:  # those have a reader's or method's signature
            check_value(key, OmegaConf.to_container(value) if OmegaConf.is_config(value) else value, annotation)


def must_be(annotation: Any) -> str:
    """What a type allows, as the end of a message: "must be int or null", "allowed are end, middle"."""
    if typing.get_origin(annotation) is Literal:
        return f"allowed are {', '.join(map(str, typing.get_args(annotation)))}"
    return f"must be {_name(annotation)}"


def _name(annotation: Any) -> str:
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_name, inner))
    if origin is Annotated:
        return _name(inner[0])
    if origin is Literal:
        return " or ".join(map(str, inner))
    if origin is list:
        return f"list of {_name(inner[0])}"
    if origin is dict:
        return f"mapping of {_name(inner[0])} to {_name(inner[1])}"
    return "null" if annotation is type(None) else getattr(annotation, "__name__", str(annotation))


def read_json(path: Path, model: type[Model], where: str, fix: str) -> Model:
    """Read a JSON file into a model.

    Args:
        path: the file.
        model: what it has to hold.
        where: how messages call the file: its path, or the key that names it.
        fix: the end of each message.

    Raises:
        CoopError: the file cannot be read, is not JSON, or has a key of the wrong form; names the key.
    """
    try:
        return parse_json(path.read_bytes(), model, where, fix)
    except OSError as error:
        raise CoopError(f"{where}: cannot be read ({error.strerror}). {fix}") from None


def parse_json(content: bytes, model: type[Model], where: str, fix: str) -> Model:
    """The same of a file's content."""
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        raise CoopError(f"{where}: {_first_of_file(error)}. {fix}") from None


def _first_of_file(error: ValidationError) -> str:
    """The first mistake in a file: where it is, what stands there and what was expected."""
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return f"not readable as JSON ({first['ctx']['error']})"
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
    if first["type"] == "missing":
        return f"{place} is missing"
    message = first["msg"]
    for theirs, ours in JSON_TYPES.items():
        message = message.replace(theirs, ours)
    return f"{place or 'the file'} is {_cut(_as_json(first['input']))}: {message}"


def _as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
