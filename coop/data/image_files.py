"""Image files that words of the command line mean; imports no torch."""

import glob
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from coop.data.readers.listing import is_ignored, is_image_name, printable
from coop.errors import CoopError

Found = tuple[str, str | None]


def find_images(words: Sequence[str]) -> Iterator[Found]:
    """The image files that words of the command line mean: files, folders with all beneath them, patterns.

    Yields:
        A path and None, or what the message is about and the message: for a word that means nothing that is there, or
        a folder that cannot be read.
    """
    if not words:
        raise CoopError("give images, folders of images, or patterns such as 'photos/*.jpg'")
    for word in words:
        nothing = f"{printable(word)}: no such image, and no folder or pattern that has any"
        yield from list(_meant_by(os.path.expanduser(word))) or [(word, nothing)]


def _meant_by(word: str) -> Iterator[Found]:
    try:
        is_folder = stat.S_ISDIR(os.stat(word).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        if os.path.islink(word):
            yield word, None  # opening it says where it should lead
            return
        found = (image for match in _matches(word) for image in _meant_by(match))
        yield from dict.fromkeys(found)
    except OSError as error:
        yield word, f"{printable(word)}: {error.strerror}"
    else:
        yield from _beneath(word) if is_folder else [(word, None)]


def _matches(pattern: str) -> list[str]:
    """Paths that a pattern means; ** goes into folders and not into links to folders, which may lead back up."""
    parts = Path(pattern).parts
    if "**" not in parts:
        return sorted(glob.glob(pattern))
    anchor = Path(pattern).anchor
    found = Path(anchor or ".").glob(str(Path(pattern).relative_to(anchor)))
    return sorted(str(path) for path in found if not any(is_ignored(part) for part in set(path.parts) - set(parts)))


def _beneath(folder: str, above: tuple = ()) -> Iterator[Found]:
    """The images in a folder and in all folders in it; links are followed, but not into a folder from within it."""
    try:
        here = os.stat(folder)
        with os.scandir(folder) as entries:
            found = sorted((entry.name, _is_folder(entry)) for entry in entries if not is_ignored(entry.name))
    except OSError as error:
        yield folder, f"{printable(folder)}: {error.strerror}"
        return
    if (here.st_dev, here.st_ino) in above:
        return
    start = os.path.join(folder, "")
    yield from ((start + name, None) for name, is_folder in found if not is_folder and is_image_name(name))
    for name in (name for name, is_folder in found if is_folder):
        yield from _beneath(start + name, (*above, (here.st_dev, here.st_ino)))


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False
