"""What an offline W&B run has written, read back from its folder."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK, FILE_HEADER, RECORD_HEADER = 32768, 7, 7  # the log format of LevelDB
WHOLE, LAST = 1, 4


def offline_folders(run_dir: Path) -> list[Path]:
    """One per start of the run, the first start first."""
    return sorted((run_dir / "wandb").glob("offline-run-*"), key=lambda folder: folder.stat().st_mtime)


def records(folder: Path) -> Iterator[Any]:
    """The protocol-buffer records of an offline run; a killed run's last one may be torn and is left out."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = folder.glob("*.wandb")
    data, position, parts = path.read_bytes(), FILE_HEADER, b""
    while position + RECORD_HEADER <= len(data):
        if BLOCK - position % BLOCK < RECORD_HEADER:
            position += BLOCK - position % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + RECORD_HEADER])
        position += RECORD_HEADER
        if position + length > len(data) or not kind:
            return
        parts += data[position : position + length]
        position += length
        if kind in (WHOLE, LAST):
            record = Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def run_of(folder: Path) -> Any:
    """The record that says which run this is: run_id, run_group, display_name, project."""
    return next(record.run for record in records(folder) if record.HasField("run"))


def history(folder: Path) -> list[dict[str, Any]]:
    """What was logged, step by step."""
    return [_values(record.history.item) for record in records(folder) if record.HasField("history")]


def summary(folder: Path) -> dict[str, Any]:
    """The summary as it was set."""
    found: dict[str, Any] = {}
    for record in records(folder):
        if record.HasField("summary"):
            found |= _values(record.summary.update)
    return found


def _values(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def media(folder: Path, name: str) -> Path:
    """The file of a logged picture or table."""
    (path,) = [values[f"{name}/path"] for values in history(folder) if f"{name}/path" in values]
    return folder / "files" / path


def table(folder: Path, name: str) -> dict[str, Any]:
    """A logged wandb.Table: {"columns", "data"}."""
    return json.loads(media(folder, name).read_text())
