"""What the files of a run's folder hold, as typed models; what does not fit one ends in one message."""

import reprlib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from coop.errors import CoopError

Fraction = Annotated[float, Field(ge=0, le=1)]


class FromFile(BaseModel):
    """The base of all: types exactly as coop writes them, no NaN; keys of later versions are kept and not looked at."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, protected_namespaces=())


def validated(model: type[FromFile], content: Any, path: Path, what: str, fix: str = "") -> dict[str, Any]:
    """The content of a file (plain values), with defaults for keys that earlier versions did not write.

    Raises:
        CoopError: `path` is not `what` ("the config of a run"); names the first key that is wrong, its value and what
            was expected, and ends with `fix`.
    """
    try:
        return model.model_validate(content).model_dump(by_alias=True)
    except ValidationError as error:
        first, *others = error.errors(include_url=False, include_context=False)
    key, expected = ".".join(map(str, first["loc"])), first["msg"].replace("Input should be", "expected")
    if first["type"] == "missing":
        reason = f"{key} is missing"
    elif first["type"] == "model_type":
        reason = f"{key or 'it'} is {reprlib.repr(first['input'])}, expected keys with values"
    else:
        reason = f"{key} is {reprlib.repr(first['input'])}, {expected}"
    more = f" (and {len(others)} more like this)" if others else ""
    raise CoopError(f"{path}: not {what}: {reason}{more}{'; ' if fix else ''}{fix}")


class Backbone(FromFile):
    """What `FrozenCLIP.load` takes."""

    model: str
    name: str
    pretrained: str | None = None
    precision: str = "fp32"
    cache_dir: str | None = None


class Node(FromFile):
    """A method or a data set; its other keys are arguments, which are held against the signature of `_target_`."""

    target: str = Field(alias="_target_")
    name: str


class Dataset(Node):
    template: str
    classes: Literal["all", "base", "new"] = "all"
    epochs: int | None = None
    manifest: str | None = None
    manifest_sha256: str | None = None


class Trainer(FromFile):
    precision: Literal["32", "16-mixed", "bf16-mixed"]
    tf32: bool = False


class RunConfig(FromFile):
    """config.yaml."""

    shots: int
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    data_root: str | None
    epochs: int | None
    augmentation: str
    batch_size: int
    backbone: Backbone
    dataset: Dataset
    method: Node
    optimizer: dict[str, Any]
    trainer: Trainer
    targets: list[str] = []
    steps: int | None = None
    steps_per_shot: int | None = None
    epochs_by_shots: dict[int | str, int] | None = None
    view_sampling: Literal["per_image", "pooled"] = "per_image"
    validation: Literal["choose", "none"] = "choose"


class Accuracies(FromFile):
    acc: Fraction = Field(alias="test/acc")
    macro_acc: Fraction = Field(alias="test/macro_acc")
    zero_shot_acc: Fraction = Field(alias="zero_shot/acc")
    zero_shot_macro_acc: Fraction = Field(alias="zero_shot/macro_acc")


class CommonResults(FromFile):
    """results.json, as far as it is the same for training, evaluation and conversion."""

    task: Literal["train", "evaluate", "convert"]
    method: str
    backbone: str
    dataset: str
    shots: int
    seed: int
    num_classes: int
    trainable_params: int
    classes: Literal["all", "base", "new"] = "all"
    targets: dict[str, Accuracies] = {}


class Results(CommonResults, Accuracies):
    """results.json of coop.train."""

    split: str
    augmentation: str
    epochs: int
    n_test: int
    fit_seconds: float
    val_acc: Fraction | None = Field(alias="val/acc", default=None)
    uses: list[str] | None = None
    step_seconds: float | None = None
    peak_memory_mb: float | None = None


class PromptMetadata(FromFile):
    """What stands beside the tensors in prompt.safetensors."""

    version: str
    method: dict[str, Any]
    dataset: str
    classnames: Annotated[list[str], Field(min_length=1)]
    backbone: str
    pretrained: str | None
    precision: str
    fingerprint: str
