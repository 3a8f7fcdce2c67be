"""Folders on disk: found under `data_root`, listed once and sorted; nothing is left out without a word."""

import logging
import os
from pathlib import Path
from typing import Annotated, NamedTuple

from coop.errors import CoopError
from coop.system.validation import NOT_EMPTY

log = logging.getLogger("coop")

#: Folders beneath `data_root` that a data set may lie in: CoOp's layout first, then torchvision's.
Folders = Annotated[list[Annotated[str, NOT_EMPTY]], NOT_EMPTY]
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's
SHOWN = 5


class NotThereError(CoopError):
    """A data set's folder does not exist."""


class Listing(NamedTuple):
    """Names in one folder, each list sorted; hidden ones and those that archivers leave behind are not in it."""

    folders: list[str]
    images: list[str]
    others: list[str]  # files that are not images, pipes and devices, and links to this folder or one above it


def list_folder(path: str | os.PathLike) -> Listing:
    """List one folder, links followed.

    Raises:
        CoopError: the folder is missing or unreadable, a link in it leads nowhere, or a name in it is not UTF-8.
    """
    listing = Listing([], [], [])
    for name, kind in sorted(_scan(path)):
        getattr(listing, kind).append(name)
    return listing


def is_image_name(name: str) -> bool:
    """Whether a file's name ends as those of images do."""
    return name.lower().endswith(EXTENSIONS)


def printable(path: str | os.PathLike) -> str:
    """A path as text; bytes that are not UTF-8 as \\xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _scan(path: str | os.PathLike) -> list[tuple[str, str]]:
    try:
        with os.scandir(path) as entries:
            return [(entry.name, _kind(entry)) for entry in entries if not is_ignored(entry.name)]
    except FileNotFoundError:
        raise CoopError(f"{path}: this folder does not exist") from None
    except NotADirectoryError:
        raise CoopError(f"{path}: is a file where a folder was expected") from None
    except PermissionError:
        raise CoopError(f"{path}: no permission to read this folder. Fix it with: chmod u+rx '{path}'") from None


def is_ignored(name: str) -> bool:
    """Whether a name is hidden, or what an archiver leaves behind."""
    return name.startswith(".") or name in ("__MACOSX", "Thumbs.db")


def _kind(entry: os.DirEntry) -> str:
    """In which of a listing's lists a name belongs. Only links cost a look at the disk."""
    if not entry.name.isascii() and printable(entry.name) != entry.name:
        raise CoopError(
            f"{printable(entry.path)}: this name is not UTF-8 (its other bytes are shown as \\xNN); results could not "
            "name it. Rename it; all at once, from Latin-1: convmv -f latin1 -t utf8 -r --notest FOLDER"
        )
    is_link = entry.is_symlink()
    if is_link and not os.path.exists(entry.path):
        raise CoopError(f"{entry.path}: a link to {os.readlink(entry.path)}, which does not exist. Remove or fix it.")
    if entry.is_dir():
        return "others" if is_link and _leads_up(entry.path) else "folders"
    return "images" if is_image_name(entry.name) and entry.is_file() else "others"


def _leads_up(link: str) -> bool:
    """Whether a link to a folder leads to the one that it is in, or to one above it: to itself, in the end."""
    target, here = os.path.realpath(link), os.path.realpath(os.path.dirname(link))
    return os.path.commonpath([target, here]) == target


def warn_left_out(where: str | os.PathLike, others: list[str]) -> None:
    """Warn about files that are not images (paths relative to `where`)."""
    if others:
        log.warning("%s: %d files are not images and are left out: %s", where, len(others), shorten(others))


def read_lines(path: Path, fix: str) -> list[str]:
    """The lines of a data set's own list, without empty ones; raises CoopError, which ends with `fix`, without any."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise CoopError(f"{path}: can't read this list of the data set ({error}). {fix}") from None
    if not lines:
        raise CoopError(f"{path}: this list is empty. {fix}")
    return lines


def shorten(names: list[str], shown: int = SHOWN) -> str:
    """The first few names, and how many more there are."""
    rest = len(names) - shown
    return ", ".join(names[:shown]) + (f", ... and {rest} more" if rest > 0 else "")


def find_folder(data_root: str | None, candidates: list[str]) -> Path:
    """Find the first of the candidate folders that exists under `data_root`.

    Raises:
        NotThereError: none exists; says where it was looked for, and what nearly fits.
    """
    wanted = " or ".join(candidates)
    if data_root is None:
        raise NotThereError(f"this data set needs data_root=DIR, where DIR is the folder that holds {wanted}")
    root = Path(data_root).expanduser()
    if not root.is_dir():
        raise NotThereError(f"data_root={data_root}: this folder does not exist; it should hold {wanted}")
    folders = [root / candidate for candidate in candidates]
    if there := next(filter(Path.is_dir, folders), None):
        return there
    tried, hint = " or ".join(map(str, folders)), _hint(root, candidates)
    raise NotThereError(f"data_root={data_root}: looked for the folder {tried}, which does not exist{hint}")


def _hint(root: Path, candidates: list[str]) -> str:
    """Say what nearly fits: another level of `data_root`, or another case of a name."""
    for candidate in candidates:
        first, *rest = Path(candidate).parts
        if (root.resolve().name == first and root.joinpath(*rest).is_dir()) or (root.parent / candidate).is_dir():
            return f". It is one level up: data_root={root.resolve().parent}"
        for name in list_folder(root).folders:
            if (root / name / candidate).is_dir():
                return f". It is one level down: data_root={root / name}"
        if found := other_case(root, candidate):
            return f". There is {root / found}, whose name differs in case: rename it"
    there = shorten(list_folder(root).folders) or "no folder"
    return f". It holds: {there}; python -m coop.data check NAME says how to get it"


def other_case(root: Path, relative: str) -> str | None:
    """A path under `root` that equals `relative` but for case, or None."""
    found = Path()
    for part in Path(relative).parts:
        if not (root / found).is_dir():
            return None
        names = [name for name, _ in _scan(root / found)]
        match = part if part in names else next((name for name in sorted(names) if name.lower() == part.lower()), None)
        if match is None:
            return None
        found = found / match
    return str(found)
