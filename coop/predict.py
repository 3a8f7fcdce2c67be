"""python -m coop.predict run=RUN IMAGE...: what a learned prompt sees in images."""

from coop.cli.options import run_command

USAGE = """python -m coop.predict run=RUN IMAGE... [top=5] [json=true] [out=FILE.json] [accelerator=auto]
         [--config-dir DIR]

  run=RUN          a run's folder, the one that holds prompt.safetensors; or hf:USER/NAME, on the Hugging Face hub
  IMAGE            an image file, a folder (with all that is beneath it), or a pattern such as 'photos/*.jpg'
  top=N            how many classes for each image
  json=true        print JSON instead of a table
  out=FILE.json    write the same JSON to a file
  --config-dir DIR the folder of your own configs, where the run's method is one of them

An image that is missing or cannot be read is named, the others go on, and the exit code is 1; in JSON its entry has an
"error" in place of "classes"."""

if __name__ == "__main__":  # before the imports below: --help and most mistakes need no torch
    run_command("predict", USAGE)

import glob
import json
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console
from rich.table import Table

from coop.cli.options import parse
from coop.data.readers.listing import is_ignored, is_image_name, printable
from coop.errors import CoopError
from coop.evaluation.finished import load_run
from coop.evaluation.images import failure
from coop.system.files import write_json
from coop.system.validation import MOST_CLASSES, between

Found = tuple[str, str | None]


@dataclass
class Options:
    """What the command line may set; USAGE says what each means."""

    run: str = "???"
    top: Annotated[int, between(1, MOST_CLASSES)] = 5
    json: bool = False
    out: str | None = None
    accelerator: str = "auto"
    config_dir: str | None = None


def main(words: list[str]) -> int:
    """Predict and show; returns the exit code."""
    patterns, options = parse(words, Options)
    found = list(find_images(patterns))
    paths = [path for path, error in found if error is None]
    # Where there is nothing to predict, there is no need to load a run.
    predicted = iter(_predict(options, paths) if paths else [])
    predictions = [next(predicted) if error is None else failure(path, error) for path, error in found]
    if options.out:
        write_json(Path(options.out).expanduser(), predictions)
    if options.json:
        print(json.dumps(predictions, indent=2, ensure_ascii=False, allow_nan=False))
    else:
        show(predictions)
    failed = [prediction["error"] for prediction in predictions if "error" in prediction]
    for message in failed:
        print(f"error: {message}", file=sys.stderr)
    if failed:
        print(f"error: {len(failed)} of {len(predictions)} images could not be read", file=sys.stderr)
    return 1 if failed else 0


def _predict(options: Any, paths: Sequence[str]) -> list[dict[str, Any]]:
    return load_run(options.run, options.accelerator, options.config_dir).predict(paths, options.top)


def find_images(words: Sequence[str]) -> Iterator[Found]:
    """The image files that words of the command line mean: files, folders with all beneath them, patterns.

    Yields:
        A path and None, or what the message is about and the message: for a word that means nothing that is there, or
        a folder that cannot be read.

    Raises:
        CoopError: there are no words.
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
            names = sorted(entry.name for entry in entries if not is_ignored(entry.name))
    except OSError as error:
        yield folder, f"{printable(folder)}: {error.strerror}"
        return
    if (here.st_dev, here.st_ino) in above:
        return
    paths = [os.path.join(folder, name) for name in names]
    folders = [path for path in paths if os.path.isdir(path)]
    yield from ((path, None) for path in paths if is_image_name(path) and path not in set(folders))
    for inner in folders:
        yield from _beneath(inner, (*above, (here.st_dev, here.st_ino)))


def show(predictions: Sequence[dict[str, Any]]) -> None:
    """One line per image that could be read; none of them, no table."""
    predictions = [prediction for prediction in predictions if "classes" in prediction]
    if not predictions:
        return
    table = Table()
    table.add_column("image", overflow="fold")
    table.add_column("class: probability %, the most probable first")
    for prediction in predictions:
        classes = ",  ".join(f"{c['classname']} {100 * c['probability']:.1f}" for c in prediction["classes"])
        table.add_row(prediction["path"], classes)
    Console(markup=False, emoji=False, highlight=False).print(table)
