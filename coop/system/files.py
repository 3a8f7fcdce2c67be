"""Writing files so that they are there whole or not at all."""

import errno
import hashlib
import json
import os
import secrets
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from coop.errors import CoopError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

# Temporary files begin with this: nobody else's do, and the longest names of files need not fit behind it.
MARK = ".coop-tmp-"
LONGEST_NAME = 255  # bytes, on the disks that there are
# Where files cannot be locked, a temporary file of this age (seconds) has no writer any more.
DAY = 24 * 60 * 60
MOMENT = 10  # seconds; longer than from opening a file to locking it
# What file systems answer that have no way to flush one file.
NO_FSYNC = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)
# What the system says, and what a user does about it.
FIXES = {
    errno.ENOSPC: "free some space, or write to another disk",
    errno.EDQUOT: "your share of this disk is used up: remove files, or write to another disk",
    errno.EFBIG: "files of this size are not allowed here: raise the limit (ulimit -f), or write elsewhere",
    errno.EROFS: "choose a folder that may be written to",
    errno.EACCES: "choose another place, or change the permissions with chmod u+rwx",
    errno.EPERM: "choose another place, or change its owner or permissions",
    errno.ENOTDIR: "a part of this path is a file; choose another place",
    errno.EEXIST: "a file stands where a folder is needed; choose another place",
    errno.EISDIR: "a folder stands there; give the name of a file",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "symbolic links lead in a circle; remove one of them",
    errno.EMFILE: "raise the limit (ulimit -n), or lower num_workers",
    errno.EAGAIN: "lower num_workers, or raise the limit of processes (ulimit -u)",
    errno.ENOMEM: "lower num_workers and batch_size",
}


def explain_os_error(error: OSError) -> str:
    """What the system says, and what to do about it where that is known."""
    fix = FIXES.get(error.errno)
    return f"{error.strerror}; {fix}" if fix else str(error.strerror or error)


def subfolder(name: str) -> str:
    """A name whose folder lies beneath the one that it is put into: itself, unless `..` or its length is in the way."""
    parts = name.split("/")
    if ".." not in parts and all(len(part.encode()) <= LONGEST_NAME for part in parts):
        return name
    start = name.replace("/", "_").encode()[: LONGEST_NAME - 17].decode(errors="ignore")
    return f"{start}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def check_utf8(text: str) -> None:
    """Raises CoopError for a name with bytes that are not UTF-8: no config, result or page can hold it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise not_utf8(error) from None


def not_utf8(error: UnicodeEncodeError) -> CoopError:
    """The same about the line, of whatever was to be written, that holds such a name."""
    line = error.object[error.object.rfind("\n", 0, error.start) + 1 :].partition("\n")[0]
    shown = line.encode(errors="surrogateescape").decode(errors="backslashreplace")
    return CoopError(f"{shown[:300]}: not UTF-8, as all that is written here; rename it (convmv can)")


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file under a temporary name beside its place, then move it there; its folder is made if it is not there.

    Whatever interrupts it (an exception, a kill, a power cut) leaves the old file or the new one. The file's mode is
    that of any new file: the user's umask decides. What killed processes left in this folder is removed.

    Raises:
        CoopError: the folder cannot be written to, or the disk is full.
    """
    temporary = path.parent / f"{MARK}{secrets.token_hex(8)}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent)
        with open(temporary, "xb") as file:
            _lock(file.fileno())  # as long as it is open
            file.write(content)
            file.flush()
            _flush(file.fileno())
            if not fcntl:  # Windows moves no open file
                file.close()
            os.replace(temporary, path)
        with suppress(OSError):  # a folder that may be written to and not read, one that cannot be flushed, Windows
            _flush_folder(path.parent)
    except OSError as error:
        said = explain_os_error(error)
        raise CoopError(f"{path}: cannot be written ({said}); what was there before is untouched") from error
    finally:
        with suppress(OSError):  # it has been moved
            temporary.unlink()


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files directly in this folder whose writers are no more."""
    for leftover in folder.glob(f"{MARK}*"):
        with suppress(OSError):  # gone meanwhile, or somebody else's
            if _abandoned(leftover):
                leftover.unlink()


def _abandoned(temporary: Path) -> bool:
    """Whether nobody is writing this file: a lock goes with its process, however that ends."""
    age = time.time() - temporary.lstat().st_mtime
    if age > DAY or not fcntl:
        return age > DAY
    descriptor = os.open(temporary, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        # An empty one may have been opened and not locked yet.
        return (os.fstat(descriptor).st_size > 0 or age > MOMENT) and _lock(descriptor)
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Lock an open file; False if another process has, or if nobody can here."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (OSError, AttributeError):
        return False
    return True


def _flush(descriptor: int) -> None:
    """Wait until the disk has what was written to an open file."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_FSYNC:
            raise


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Write a value as readable JSON, atomically."""
    write_atomically(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())
