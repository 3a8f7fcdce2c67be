"""An index of large listings on disk, so that ImageNet's 1.28 million paths are listed once and then known at once."""

import hashlib
import json
import os
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

from coop.data.feature_cache import default_cache_dir
from coop.data.readers.listing import Listing, list_folder, log
from coop.errors import CoopError
from coop.system.files import write_atomically

FORMAT = 2
# A folder changed this shortly before it was listed may change again without a visible change of its time stamp.
SETTLED_NS = 2_000_000_000

Stamp = tuple[int, int, int]  # modification time (ns), inode, time of listing (ns)
Index = dict[str, tuple[Stamp, Listing]]  # by folder


def list_class_folders(root: Path, folders: list[str]) -> Iterator[tuple[str, Listing]]:
    """List the given folders of `root` one after another, from the index where one has not changed since it was listed.

    A folder counts as changed when its modification time or inode differ: files added, removed or renamed. What is in
    the files is not looked at. The index is only a speed-up: without a writable cache folder, or with a damaged index,
    everything is listed anew.
    """
    file = _index_file(root)
    known = _read(file)
    index: Index = {}
    for folder in folders:
        path = os.path.join(root, folder)
        status = os.stat(path)
        stamp, listing = known.get(folder, ((0, 0, 0), None))
        if not _settled(stamp) or (status.st_mtime_ns, status.st_ino) != stamp[:2]:
            stamp, listing = (status.st_mtime_ns, status.st_ino, time.time_ns()), list_folder(path)
        index[folder] = stamp, listing
        yield folder, listing
    if index != known:
        _write(file, index)


def _settled(stamp: Stamp) -> bool:
    modified, _, listed = stamp
    return modified + SETTLED_NS < listed


def _index_file(root: Path) -> Path:
    name = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:24]
    return default_cache_dir() / "listings" / name


# A line of JSON with a checksum, then one JSON object of all folders. A million names are read in a tenth of a second.


def _read(file: Path) -> Index:
    try:
        head, body = file.read_bytes().split(b"\n", 1)
        if json.loads(head) != _head(body):
            return {}
        return {folder: (tuple(stamp), Listing(*names)) for folder, (stamp, names) in json.loads(body).items()}
    except (OSError, ValueError):
        return {}


def _write(file: Path, index: Index) -> None:
    body = json.dumps(index, ensure_ascii=False).encode()
    try:
        write_atomically(file, json.dumps(_head(body)).encode() + b"\n" + body)
    except CoopError as error:
        log.info("The index of a large listing can't be kept, so it is listed anew every time: %s", error)


def _head(body: bytes) -> dict[str, int]:
    return {"format": FORMAT, "checksum": zlib.crc32(body)}
