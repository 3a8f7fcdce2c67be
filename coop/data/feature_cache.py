"""Image features kept on disk, one row per image, so that no frozen tower sees the same image twice.

An entry is a folder named by the content of what makes features: weights, preprocessing, view, precision. Inside lie
shards, each written whole by one process under a name of its own; readers take all shards there are. So a half-written
file is never read, and a changed image (path, size or time) is simply not found. Of processes that encode the same data
set one does so at a time; the next finds what it has kept.
"""

import hashlib
import logging
import os
import time
import uuid
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from filelock import FileLock, Timeout
from rich.filesize import decimal
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from coop.errors import CoopError
from coop.system.files import write_atomically

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger("coop")

FORMAT = 1
IDENTITY_BYTES = 16
NO_FILE = b"\0" * IDENTITY_BYTES
CHECKSUM = "crc32"  # key in a shard's metadata; shards of earlier versions have none
DAMAGED = ".damaged"  # the ending of a shard that was set aside
# A kill loses at most so many images, and at most so many seconds of work.
SHARD_ROWS, SHARD_SECONDS = 4096, 30

_warned: set[Path] = set()
_refused: set[Path] = set()


@cache
def show_once(root: Path) -> None:
    """Say where image features are kept and how much there is of them: once in a process."""
    size = 0
    for shard in (root / "features").glob("*/*.safetensors"):
        with suppress(OSError):  # another process has removed it
            size += shard.stat().st_size
    how = "python -m coop.cache shows and clears them; features=online: none kept"
    log.info("image features are kept in %s (%s so far; %s)", root, decimal(size), how)


def default_cache_dir() -> Path:
    """Where features are kept unless the config says otherwise: $COOP_CACHE, else ~/.cache/coop."""
    return Path(os.environ.get("COOP_CACHE") or "~/.cache/coop").expanduser()


class FeatureCache:
    """The rows of one entry.

    Args:
        root: the cache's folder.
        key: everything but the image itself that features depend on; compared by its text form.
    """

    def __init__(self, root: Path, *key: object):
        import torch

        name = hashlib.sha256(repr((FORMAT, torch.__version__, *key)).encode()).hexdigest()[:32]
        self.root, self.folder = root, root / "features" / name

    def lookup(self, identities: np.ndarray, features: "Tensor") -> np.ndarray:
        """Which images are in the cache (N), by their identities (N); theirs of the features (N, E) are filled in.

        A shard that is damaged is set aside with a warning, and its images count as not found.
        """
        wanted, first, inverse = np.unique(identities, return_index=True, return_inverse=True)
        found = wanted == NO_FILE  # nothing to look for
        for path in sorted(self.folder.glob("*.safetensors")):
            if found.all():
                break
            try:
                shard = Shard(path)
                if shard.width != features.shape[1]:
                    raise ValueError(f"features of width {shard.width}, expected {features.shape[1]}")
                place = np.searchsorted(wanted, shard.identities).clip(max=len(wanted) - 1)
                hits = (wanted[place] == shard.identities) & ~found[place]
                if hits.any():
                    rows = shard.features()
                    features.numpy()[first[place[hits]]] = rows if hits.all() else rows[hits]
            except (SafetensorError, OSError, ValueError) as error:
                _set_aside(path, error)
            else:
                found[place[hits]] = True
        found[wanted == NO_FILE] = False
        # An image that was asked for twice has its row twice.
        found, first = found[inverse], first[inverse]
        again = np.flatnonzero(found & (first != np.arange(len(first))))
        features.numpy()[again] = features.numpy()[first[again]]
        return found

    @contextmanager
    def alone(self, dataset: str | None, wait: bool) -> Iterator[None]:
        """Encode images of a data set while no other process does, so that none is encoded twice.

        Without `wait`, and where files cannot be locked, both go on at once.
        """
        with ExitStack() as held:
            with suppress(Timeout, OSError, NotImplementedError):
                self.folder.mkdir(parents=True, exist_ok=True)
                lock = FileLock(self.folder / f".{hashlib.sha256(str(dataset).encode()).hexdigest()[:8]}.lock")
                try:
                    lock.acquire(timeout=0)
                except Timeout:
                    if not wait:
                        raise
                    log.info("another process is encoding images of %s; waiting for it", dataset or "this data set")
                    lock.acquire()
                held.callback(lock.release)
            yield

    def add(self, identities: np.ndarray, features: "Tensor", about: Mapping[str, str] | None = None) -> None:
        """Keep features (N, E) of the images of these identities (N), but for those whose file has gone away.

        A folder that cannot be written costs one warning, and is not tried again. `python -m coop.cache` shows `about`.
        """
        there = identities != NO_FILE
        if self.root in _refused or not there.any():
            return
        tensors = {
            "identities": np.frombuffer(identities[there].tobytes(), np.uint8).reshape(-1, IDENTITY_BYTES),
            "features": np.ascontiguousarray(features.numpy()[there]),
        }
        content = save(tensors, metadata={**(about or {}), CHECKSUM: checksum(**tensors)})
        try:
            write_atomically(self.folder / f"{uuid.uuid4().hex}.safetensors", content)
        except CoopError as error:
            log.warning("features are not kept for later runs: %s", error)
            _refused.add(self.root)


class Shard:
    """A file of the cache that is open to be read: the features of `rows` images, of `width` numbers each.

    Raises:
        OSError: it cannot be read just now.
        ValueError: it is not of the form that shards have.
    """

    def __init__(self, path: Path):
        if not path.is_file():  # opening a named pipe would wait for ever
            raise ValueError("not a file")
        try:
            self.file = safe_open(path, framework="np")
        except SafetensorError as error:
            raise ValueError(str(error)) from error
        if sorted(self.file.keys()) != ["features", "identities"]:
            raise ValueError(f"holds {', '.join(self.file.keys()) or 'nothing'}, expected features and identities")
        features, identities = self.file.get_slice("features"), self.file.get_slice("identities")
        shape = features.get_shape()
        if features.get_dtype() != "F32" or len(shape) != 2:
            raise ValueError(f"features of type {features.get_dtype()} and shape {shape}, expected F32 and (N, E)")
        if identities.get_dtype() != "U8" or identities.get_shape() != [shape[0], IDENTITY_BYTES]:
            raise ValueError(f"identities of shape {identities.get_shape()} for {shape[0]} images")
        self.rows, self.width = shape
        self.about = dict(self.file.metadata() or {})
        self.checksum = self.about.pop(CHECKSUM, None)

    @cached_property
    def identities(self) -> np.ndarray:
        return self.file.get_slice("identities")[:].view(f"S{IDENTITY_BYTES}")[:, 0]

    def features(self) -> np.ndarray:
        """All of them (N, E), at most a little more than SHARD_ROWS. Raises ValueError where they are damaged."""
        features = self.file.get_slice("features")[:]
        if not np.isfinite(features).all():
            raise ValueError("features that are not finite")
        if self.checksum not in (None, checksum(self.identities, features)):
            raise ValueError("its checksum does not fit its content")
        return features


def checksum(identities: np.ndarray, features: np.ndarray) -> str:
    return f"{zlib.crc32(features, zlib.crc32(identities)):08x}"


def _set_aside(shard: Path, error: Exception) -> None:
    """Say once what is wrong with a shard, and let no later run read it; what cannot be read just now stays."""
    if not os.path.lexists(shard):  # another process has done so, or `python -m coop.cache clear`
        return
    if shard not in _warned:
        log.warning("%s: unreadable, its images are encoded again (%s)", shard, error)
    _warned.add(shard)
    if isinstance(error, ValueError) and shard.is_file():
        try:
            os.replace(shard, shard.with_suffix(DAMAGED))
        except OSError:
            log.debug("%s stays where it is", shard)


class ShardWriter:
    """Keeps features (N, E) of images at N paths as they are computed: a shard now and then, one at the end.

    Used in a `with`; whoever fills in the features calls `computed`.
    """

    def __init__(self, cache: FeatureCache, paths: Sequence[str], features: "Tensor", about: Mapping[str, str]):
        self.cache, self.paths, self.features, self.about = cache, paths, features, about
        self.identities = np.zeros(len(paths), f"S{IDENTITY_BYTES}")
        self.pending: list[int] = []
        self.since = time.monotonic()

    def identify(self, rows: np.ndarray) -> np.ndarray:
        """Identities of these images, looked at once and before they are read."""
        new = rows[self.identities[rows] == NO_FILE]
        self.identities[new] = identify([self.paths[row] for row in new])
        return self.identities[rows]

    def __enter__(self) -> "ShardWriter":
        self.since = time.monotonic()
        return self

    def __exit__(self, *_) -> None:
        self.flush()

    def computed(self, rows: np.ndarray) -> None:
        """These rows of the features are there now."""
        self.pending += rows.tolist()
        if len(self.pending) >= SHARD_ROWS or time.monotonic() - self.since >= SHARD_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what is not on disk yet."""
        rows, self.pending = np.array(self.pending, int), []
        if len(rows):
            # An image that was replaced meanwhile must not be found under its new identity.
            rows = rows[identify([self.paths[row] for row in rows]) == self.identities[rows]]
            self.cache.add(self.identities[rows], self.features[rows], self.about)
        self.since = time.monotonic()


def identify(paths: Sequence[str]) -> np.ndarray:
    """Identities (N) of images, 16 bytes each."""
    return np.frombuffer(b"".join(map(identity, paths)), f"S{IDENTITY_BYTES}")


def identity(path: str) -> bytes:
    """What an image is recognized by: where it lies, its size, and when it was changed."""
    try:
        status = os.stat(path)
    except OSError:
        return NO_FILE  # never found: opening the image will say what is wrong
    text = f"{os.path.abspath(path)}\n{status.st_size}\n{status.st_mtime_ns}"
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=IDENTITY_BYTES).digest()
