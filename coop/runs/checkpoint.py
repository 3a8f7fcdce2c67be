"""Reading last.ckpt: whole, this program's, this run's; or one message that says to delete it."""

import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from coop.errors import CoopError, first_line
from coop.runs.folder import differing
from coop.runs.schemas import FromFile, validated

RUN = "coop_config"  # key of the decisive part of the run's config; checkpoints of earlier versions have none
FIX = "delete it to start this run anew"


class Checkpoint(FromFile):
    """What Lightning writes, and the run's config."""

    version: str = Field(alias="pytorch-lightning_version")
    epoch: int
    global_step: int
    state_dict: dict[str, Any]
    optimizer_states: list[dict[str, Any]]
    lr_schedulers: list[dict[str, Any]]
    loops: dict[str, Any]
    callbacks: dict[str, Any]
    run: dict[str, str | int | float | bool | list[Any] | None] | None = Field(alias=RUN, default=None)


def read_checkpoint(path: Path, run: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint holds. No code in it is run; the archive's own checksums are compared, which torch does not.

    Raises:
        CoopError: damaged, of another program, or of a run with another config.
    """
    try:
        check_archive(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes torch raise nearly anything
        reason = "damaged, or it holds code" if zipfile.is_zipfile(path) else "not written by torch, or cut off"
        raise CoopError(f"{path}: not a readable checkpoint ({reason}); {FIX}") from error
    validated(Checkpoint, content, path, "a checkpoint of coop.train", FIX)
    if lines := differing(content.get(RUN) or run, run):
        listed = "\n".join(lines)
        raise CoopError(f"{path}: the checkpoint of a run with another config; {FIX}\n{listed}")
    return content


def check_archive(path: Path) -> None:
    """Raises BadZipFile where the checksum of a record of a file that torch wrote differs, or it is no such file."""
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():
            raise zipfile.BadZipFile(f"the checksum of {damaged} does not fit its content")


def check_fit(own: Mapping[str, Any], given: Mapping[str, Any], path: str | Path) -> None:
    """Raises CoopError where names or shapes of what a model learns and of what a checkpoint holds differ."""
    for name in own | given:
        shapes = [tuple(state[name].shape) if hasattr(state.get(name), "shape") else None for state in (own, given)]
        if shapes[0] != shapes[1]:
            here, there = ("nothing" if shape is None else f"shape {shape}" for shape in shapes)
            raise CoopError(
                f"{path}: the checkpoint of another method or data set: {name} has {there}, {here} here; {FIX}"
            )


@contextmanager
def restoring(model: Any, path: Path | None) -> Iterator[None]:
    """Name the checkpoint where Lightning cannot restore from it (`model.restoring` says that it is at it).

    Raises:
        CoopError: the checkpoint does not fit.
    """
    try:
        yield
    except CoopError:
        raise
    except Exception as error:
        if not model.restoring:
            raise
        raise CoopError(f"{path}: does not fit this run ({first_line(error)}); {FIX}") from error
