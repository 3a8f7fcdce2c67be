"""What a run learned: prompt.safetensors, tensors with all that is needed to use them."""

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig, OmegaConf
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

import coop
from coop.errors import CoopError
from coop.methods.base import Method
from coop.runs import RESULTS, check_prompt
from coop.runs.schemas import PromptMetadata, validated
from coop.system.files import write_atomically

CHECKSUM = "crc32"  # key in the metadata; prompts of earlier versions have none
ANEW = f"copy it again, or delete it and {RESULTS} and start the same coop.train command again"


class Prompt(NamedTuple):
    """A trained method as read from a file: its tensors by name, and the metadata that `save_prompt` wrote."""

    state: dict[str, Tensor]
    metadata: dict[str, Any]


def save_prompt(path: Path, method: Method, cfg: DictConfig, classnames: Sequence[str]) -> None:
    """The trained tensors, with all that is needed to use them again, and a checksum of both, in the metadata."""
    metadata = {
        "version": coop.__version__,
        "method": OmegaConf.to_container(cfg.method, resolve=True),
        "dataset": cfg.dataset.name,
        "classnames": list(classnames),
        "backbone": method.clip.name,
        "pretrained": method.clip.pretrained,
        "precision": method.clip.precision,
        "fingerprint": method.clip.fingerprint(),
    }
    tensors = {key: value.detach().cpu().contiguous() for key, value in method.state_dict().items()}
    metadata[CHECKSUM] = checksum(tensors, metadata)
    # Under one key: safetensors writes several in any order, and equal runs would not be equal files.
    write_atomically(path, save(tensors, metadata={"coop": json.dumps(metadata, ensure_ascii=False)}))


def checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> str:
    """Changes with any bit of the tensors (contiguous, on the CPU), their names, dtypes, shapes, or the metadata."""
    crc = zlib.crc32(json.dumps(metadata).encode())
    for name, tensor in sorted(tensors.items()):
        crc = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), crc)
        crc = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy(), crc)
    return f"{crc:08x}"


def load_prompt(path: Path) -> Prompt:
    """Read what `save_prompt` wrote.

    Raises:
        CoopError: no such file, not one of ours, damaged, or one that holds values that are not finite.
    """
    check_prompt(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {})["coop"])
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, ValueError, RecursionError) as error:
        raise CoopError(f"{path}: not a prompt written by coop.train ({error}); {ANEW}") from error
    given = metadata.pop(CHECKSUM, None) if isinstance(metadata, dict) else None
    read = validated(PromptMetadata, metadata, path, "a prompt written by coop.train")
    if given not in (None, checksum(state, metadata)):
        raise CoopError(f"{path}: damaged, its checksum does not fit its content; {ANEW}")
    for name, tensor in state.items():
        if tensor.is_floating_point() and not tensor.float().isfinite().all():
            raise CoopError(f"{path}: {name} holds values that are not finite (NaN or infinite); {ANEW}")
    return Prompt(state, read)
