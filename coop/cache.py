"""python -m coop.cache: what is kept on disk between runs, and removing it."""

import re
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from coop.cli.command import exit_code
from coop.cli.options import parse
from coop.data.feature_cache import DAMAGED, Shard, default_cache_dir
from coop.errors import CoopError
from coop.system.stop import stoppable

USAGE = """python -m coop.cache [list | clear WHAT...] [cache_dir=DIR]

  list            what is kept, how large it is, when it last grew
  clear WHAT...   remove entries by name (or the beginning of it), by kind, or all

kinds: features (image features), listings (of large folders), huggingface (images unpacked from data sets)
cache_dir=DIR     without it: $COOP_CACHE, else ~/.cache/coop

Everything here can be computed again. Runs that go on meanwhile do so, and keep anew what they compute."""
KINDS = ("features", "listings", "huggingface")
ENTRY = re.compile("[0-9a-f]{24,64}")
SHORTEST = 4  # characters of a name's beginning


@dataclass(frozen=True)
class Entry:
    """One entry of the cache: a folder of files, or a single file.

    Attributes:
        kind: one of KINDS.
        path: of the folder or file; its name is a hash of what makes the content.
        files: the files themselves.
        size: of all files, in bytes.
        changed: when the youngest file was written, in seconds since 1970.
    """

    kind: str
    path: Path
    files: tuple[Path, ...]
    size: int
    changed: float


@dataclass
class Options:
    """What the command line may set; USAGE says what each means."""

    cache_dir: Path | None = None


def main(words: list[str]) -> int:
    """Run one command; returns the exit code."""
    if {"-h", "--help", "help"} & set(words):
        print(USAGE)
        return 0
    names, options = parse(words, Options)
    root = options.cache_dir.expanduser() if options.cache_dir else default_cache_dir()
    if options.cache_dir and not root.is_dir():
        raise CoopError(f"cache_dir={root}: no such folder")
    command, *what = names or ["list"]
    if command == "list" and not what:
        show(root, *find_entries(root))
    elif command == "clear":
        clear(root, what)
    else:
        raise CoopError(f"python -m coop.cache {' '.join(names)}: there is no such command; allowed are list, clear")
    return 0


def find_entries(root: Path) -> tuple[list[Entry], list[Path]]:
    """The entries of a cache, and what lies there and is not one.

    Raises:
        CoopError: a folder that cannot be read.
    """
    entries, others = [], []
    try:
        for folder in sorted(root.iterdir()) if root.is_dir() else ():
            if folder.name not in KINDS or not folder.is_dir():
                others.append(folder)
                continue
            for path in sorted(folder.iterdir()):
                if not ENTRY.fullmatch(path.name):
                    others.append(path)
                elif entry := _entry(folder.name, path):
                    entries.append(entry)
    except OSError as error:
        raise CoopError(f"{error.filename}: cannot be read ({error.strerror})") from error
    return entries, others


def _entry(kind: str, path: Path) -> Entry | None:
    """None where a run that goes on has just moved a file away."""
    try:
        files = tuple(sorted(file for file in path.iterdir() if not file.is_dir())) if path.is_dir() else (path,)
        stats = [file.lstat() for file in files] or [path.stat()]
    except FileNotFoundError:
        return None
    size = sum(stat.st_size for stat in stats) if files else 0
    return Entry(kind, path, files, size, max(stat.st_mtime for stat in stats))


def show(root: Path, entries: Sequence[Entry], others: Sequence[Path]) -> None:
    """A table of the entries, and the sum of their sizes."""
    console = Console(markup=False, emoji=False, highlight=False)
    table = Table()
    for head, where in (
        ("kind", "left"),
        ("entry", "left"),
        ("content", "left"),
        ("files", "right"),
        ("size", "right"),
    ):
        table.add_column(head, justify=where, overflow="fold")
    table.add_column("last grew")
    for entry in sorted(entries, key=lambda entry: (KINDS.index(entry.kind), -entry.changed)):
        changed = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.changed))
        files = str(len(entry.files))
        table.add_row(entry.kind, entry.path.name[:12], content(entry), files, decimal(entry.size), changed)
    if entries:
        console.print(table)
    total = decimal(sum(entry.size for entry in entries))
    console.print(f"{root}: {len(entries)} entries, {total}", soft_wrap=True)
    for path in others:
        console.print(f"not the cache's own, never removed: {path}", soft_wrap=True)


def content(entry: Entry) -> str:
    """What is in an entry, as far as its files say."""
    if entry.kind != "features":
        return ""
    images, widths, unreadable, about = 0, set(), 0, set()
    for file in entry.files:
        if file.name.startswith("."):  # a writer is at work, or was killed
            continue
        try:
            if file.suffix == DAMAGED:
                raise ValueError("set aside by a run that found it so")
            shard = Shard(file)
        except (OSError, ValueError):
            unreadable += 1
        else:
            images += shard.rows
            widths.add(shard.width)
            about |= set(shard.about.items())
    parts = [f"{images} images x {', '.join(map(str, sorted(widths)))}"] if images else []
    parts += [f"{unreadable} unreadable files"] if unreadable else []
    return ", ".join([*(text for _, text in sorted(about)), *parts])


def clear(root: Path, what: Sequence[str]) -> None:
    """Remove entries, and nothing else.

    Raises:
        CoopError: nothing was named, a name that there is not, or a file that cannot be removed.
    """
    if not what:
        raise CoopError(f"clear: say what: all, a kind ({', '.join(KINDS)}), or the name of an entry")
    entries, _ = find_entries(root)
    chosen = {entry.path: entry for word in what for entry in choose(root, word, entries)}
    for entry in chosen.values():
        remove(entry)
    print(f"{root}: removed {len(chosen)} entries, {decimal(sum(entry.size for entry in chosen.values()))}")


def choose(root: Path, word: str, entries: Sequence[Entry]) -> list[Entry]:
    """The entries that a word stands for."""
    if word == "all" or word in KINDS:
        return [entry for entry in entries if word in ("all", entry.kind)]
    named = [entry for entry in entries if entry.path.name.startswith(word)] if len(word) >= SHORTEST else []
    if len(named) != 1:
        count = f"{len(named)} entries begin so" if named else "there is no such entry"
        raise CoopError(f"clear {word}: {count} in {root}; `python -m coop.cache cache_dir={root}` lists them")
    return named


def remove(entry: Entry) -> None:
    """Remove an entry's files; its folder stays if a run has written to it meanwhile."""
    try:
        for file in entry.files:
            file.unlink(missing_ok=True)
    except OSError as error:
        raise CoopError(f"{error.filename}: cannot be removed ({error.strerror})") from error
    with suppress(OSError):
        entry.path.rmdir()


if __name__ == "__main__":
    with stoppable():
        sys.exit(exit_code(main, sys.argv[1:]))
