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
    """One entry of the cache: a folder of files, or a single file."""

    kind: str  # one of KINDS
    path: Path  # its name is a hash of what makes the content
    files: tuple[Path, ...]
    size: int  # of all files, in bytes
    changed: float  # when the youngest file was written, in seconds since 1970


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
    """The entries of a cache, and what lies there and is not one. Raises OSError: a folder that cannot be read."""
    entries, others = [], []
    for folder in sorted(root.iterdir()) if root.is_dir() else ():
        is_kind = folder.name in KINDS and folder.is_dir()
        for path in sorted(folder.iterdir()) if is_kind else [folder]:
            if not is_kind or not ENTRY.fullmatch(path.name):
                others.append(path)
            elif entry := _entry(folder.name, path):
                entries.append(entry)
    return entries, others


def _entry(kind: str, path: Path) -> Entry | None:
    """None where a run that goes on has just moved a file away."""
    try:
        files = tuple(sorted(file for file in path.iterdir() if not file.is_dir())) if path.is_dir() else (path,)
        stats = [file.lstat() for file in files]
        changed = max((stat.st_mtime for stat in stats), default=path.lstat().st_mtime)
    except FileNotFoundError:
        return None
    return Entry(kind, path, files, sum(stat.st_size for stat in stats), changed)


def show(root: Path, entries: Sequence[Entry], others: Sequence[Path]) -> None:
    """A table of the entries, and the sum of their sizes."""
    console = Console(markup=False, emoji=False, highlight=False)
    table = Table()
    for head in ("kind", "entry", "content", "files", "size", "last grew"):
        justify = "right" if head in ("files", "size") else "left"
        table.add_column(head, justify=justify, overflow="fold")
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
    """What is in an entry of features, as far as its files say."""
    images, widths, unreadable, about = 0, set(), 0, set()
    for file in entry.files if entry.kind == "features" else ():
        if file.name.startswith("."):  # a writer is at work, or was killed
            continue
        try:
            if file.suffix == DAMAGED:
                raise ValueError("set aside by a run that found it so")
            shard = Shard(file)
        except (OSError, ValueError):
            unreadable += 1
            continue
        images += shard.rows
        widths.add(shard.width)
        about |= set(shard.about.items())
    parts = [text for _, text in sorted(about)]
    parts += [f"{images} images x {', '.join(map(str, sorted(widths)))}"] if images else []
    parts += [f"{unreadable} unreadable files"] if unreadable else []
    return ", ".join(parts)


def clear(root: Path, what: Sequence[str]) -> None:
    """Remove entries, and nothing else.

    Raises:
        CoopError: nothing was named, or a name that there is not.
        OSError: a file that cannot be removed.
    """
    if not what:
        raise CoopError(f"clear: say what: all, a kind ({', '.join(KINDS)}), or the name of an entry")
    entries, _ = find_entries(root)
    chosen = {entry.path: entry for word in what for entry in choose(root, word, entries)}
    for entry in chosen.values():
        for file in entry.files:
            file.unlink(missing_ok=True)
        with suppress(OSError):  # it was a single file, or a run has written to its folder meanwhile
            entry.path.rmdir()
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


if __name__ == "__main__":
    sys.exit(exit_code(main, sys.argv[1:]))
