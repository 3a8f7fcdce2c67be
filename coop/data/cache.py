"""Image features kept on disk, one row per image, so that no frozen tower sees the same image twice.

An entry is a folder named by the content of what makes features: weights, preprocessing, view, precision. Inside lie
shards, each written whole by one process under a name of its own; readers take all shards there are. So writers never
wait for each other, a half-written file is never read, and a changed image (path, size or time) is simply not found.
"""

import hashlib
import logging
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from coop.errors import CoopError
from coop.files import write_atomically

log = logging.getLogger("coop")

FORMAT = 1
IDENTITY_BYTES = 16
NO_FILE = b"\0" * IDENTITY_BYTES


def default_cache_dir() -> Path:
    """Where features are kept unless the config says otherwise: $COOP_CACHE, else ~/.cache/coop."""
    return Path(os.environ.get("COOP_CACHE", "~/.cache/coop")).expanduser()


class FeatureCache:
    """The rows of one entry.

    Args:
        root: the cache's folder.
        key: everything but the image itself that features depend on; compared by its text form.
    """

    def __init__(self, root: Path, *key: object):
        name = hashlib.sha256(repr((FORMAT, torch.__version__, *key)).encode()).hexdigest()[:32]
        self.folder = root / "features" / name

    def lookup(self, paths: Sequence[str]) -> dict[int, Tensor]:
        """Features (E) of those images that are in the cache, by their index in `paths`."""
        wanted = {identity(path): index for index, path in reversed(list(enumerate(paths)))}
        found: dict[bytes, Tensor] = {}
        for shard in sorted(self.folder.glob("*.safetensors")):
            try:
                with safe_open(shard, framework="pt") as file:
                    rows = file.get_tensor("identities").numpy()
                    known = {row.tobytes(): number for number, row in enumerate(rows)}
                    known.pop(NO_FILE, None)
                    hits = [key for key in known.keys() & wanted.keys() if key not in found]
                    features = file.get_tensor("features") if hits else None
                    found |= {key: features[known[key]] for key in hits}
            except (SafetensorError, OSError) as error:
                log.warning("%s: unreadable, computed again (%s)", shard, error)
        return {index: found[key] for index, path in enumerate(paths) if (key := identity(path)) in found}

    def add(self, paths: Sequence[str], features: Tensor, about: Mapping[str, str] | None = None) -> None:
        """Keep features (N, E) of these images. A folder that cannot be written costs a warning, not the run.

        Args:
            paths: of the images.
            features: theirs, in the same order.
            about: what a person wants to know of them; `python -m coop.cache` shows it.
        """
        identities = torch.frombuffer(bytearray(b"".join(map(identity, paths))), dtype=torch.uint8)
        tensors = {"identities": identities.view(-1, IDENTITY_BYTES), "features": features.contiguous()}
        content = save(tensors, metadata=dict(about) if about else None)
        try:
            write_atomically(self.folder / f"{uuid.uuid4().hex}.safetensors", content)
        except CoopError as error:
            log.warning("features are not kept for later runs: %s", error)


def identity(path: str) -> bytes:
    """What an image is recognised by: where it lies, its size, and when it was changed."""
    try:
        status = os.stat(path)
    except OSError:
        return NO_FILE  # never found: opening the image will say what is wrong
    text = f"{os.path.abspath(path)}\n{status.st_size}\n{status.st_mtime_ns}"
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=IDENTITY_BYTES).digest()
