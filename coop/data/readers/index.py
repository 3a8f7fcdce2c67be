"""An index of large listings on disk, so that ImageNet's 1.28 million paths are listed once and then known at once."""

import hashlib
import json
import os
import time
import zlib
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

from coop.data.feature_cache import default_cache_dir
from coop.data.readers.listing import Listing, list_folder, log
from coop.errors import CoopError
from coop.system.files import write_atomically

FORMAT = 1
# A folder changed this shortly before it was listed may change again without a visible change of its time stamp.
SETTLED_NS = 2_000_000_000

Stamp = tuple[int, int, int]  # modification time (ns), inode, time of listing (ns)
Index = dict[str, tuple[Stamp, bytes]]  # by folder; the bytes are an encoded listing


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
        stamp, encoded = known.get(folder, ((0, 0, 0), b""))
        if _settled(stamp) and (status.st_mtime_ns, status.st_ino) == stamp[:2]:
            listing = _decode(encoded)
        else:
            stamp, listing = (status.st_mtime_ns, status.st_ino, time.time_ns()), list_folder(path)
            encoded = _encode(listing)
        index[folder] = stamp, encoded
        yield folder, listing
    if index != known:
        _write(file, index)


def _settled(stamp: Stamp) -> bool:
    modified, _, listed = stamp
    return modified + SETTLED_NS < listed


def _index_file(root: Path) -> Path:
    name = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:24]
    return default_cache_dir() / "listings" / name


# One listing is its names with "/" between them, kinds with "//" between them: no file name holds a slash. The file is
# one line of JSON, then the listings. Parsing a million names from JSON would take the second that we have.


def _encode(listing: Listing) -> bytes:
    return os.fsencode("//".join("/".join(names) for names in listing))


def _decode(encoded: bytes) -> Listing:
    return Listing(*(names.split("/") if names else [] for names in os.fsdecode(encoded).split("//")))


def _read(file: Path) -> Index:
    try:
        header, body = file.read_bytes().split(b"\n", 1)
        head = json.loads(header)
        if head["format"] != FORMAT or head["checksum"] != zlib.crc32(body):
            return {}
        ends = list(accumulate(row[-1] for row in head["folders"]))
        return {
            folder: ((modified, inode, listed), body[end - size : end])
            for (folder, modified, inode, listed, size), end in zip(head["folders"], ends, strict=True)
        }
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _write(file: Path, index: Index) -> None:
    body = b"".join(encoded for _, encoded in index.values())
    rows = [(folder, *stamp, len(encoded)) for folder, (stamp, encoded) in index.items()]
    header = json.dumps({"format": FORMAT, "checksum": zlib.crc32(body), "folders": rows}).encode()
    try:
        write_atomically(file, header + b"\n" + body)
    except CoopError as error:
        log.info("The index of a large listing can't be kept, so it is listed anew every time: %s", error)
