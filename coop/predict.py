"""python -m coop.predict run=RUN IMAGE...: what a learned prompt sees in images."""

from coop.cli.options import run

USAGE = """python -m coop.predict run=RUN_DIR IMAGE... [top=5] [json=true] [out=FILE.json] [accelerator=auto]
         [--config-dir DIR]

  run=RUN_DIR      a run's folder, the one that holds prompt.safetensors
  IMAGE            an image file, a folder (with all that is beneath it), or a pattern such as 'photos/*.jpg'
  top=N            how many classes for each image
  json=true        print JSON instead of a table
  out=FILE.json    write the same JSON to a file
  --config-dir DIR the folder of your own configs, where the run's method is one of them

An image that is missing or cannot be read is named, the others go on, and the exit code is 1; in JSON its entry has an
"error" in place of "classes"."""

if __name__ == "__main__":  # before the imports below: --help and most mistakes need no torch
    run("predict", USAGE)

import glob
import json
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from PIL.Image import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor

from coop.cli.options import parse
from coop.data.images import open_image
from coop.data.readers.listing import is_ignored, is_image_name, printable
from coop.data.transforms import test_transform
from coop.errors import CoopError
from coop.evaluation.metrics import check_probabilities
from coop.methods import Method
from coop.runs.trained import load_trained
from coop.system.files import write_json
from coop.system.progress import progress
from coop.validation import MOST_CLASSES, between

BATCH_SIZE = 32

Found = tuple[str, str | None]


@dataclass
class Options:
    """Of the command."""

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
    run_dir = Path(options.run).expanduser()
    method = load_trained(run_dir, accelerator=options.accelerator, config_dir=options.config_dir).method
    return predict_images(method, paths, options.top)


def failure(path: str, error: object) -> dict[str, Any]:
    """What stands among the predictions for an image that has none."""
    return {"path": printable(path), "error": str(error)}


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


@torch.no_grad()
def predict_images(method: Method, paths: Sequence[str], top: int) -> list[dict[str, Any]]:
    """The most probable classes of each image.

    Args:
        method: a trained method.
        paths: of images.
        top: how many classes, at most all.

    Returns:
        For each image, in the same order, "path", and under "classes" the most probable first, each with its
        "classname" and "probability"; for one that cannot be read a message under "error" in place of "classes".
    """
    transform, predictions = test_transform(method.clip.preprocess_cfg), []
    starts = range(0, len(paths), BATCH_SIZE)
    for start in progress(starts, desc="images", unit="batch", hidden=len(starts) <= 1, leave=False):
        batch = paths[start : start + BATCH_SIZE]
        opened = [_open(path) for path in batch]
        images = [transform(image) for image in opened if not isinstance(image, CoopError)]
        classes = iter(_classes(method, torch.stack(images), top) if images else [])
        for path, image in zip(batch, opened, strict=True):
            unreadable = isinstance(image, CoopError)
            entry = failure(path, image) if unreadable else {"path": printable(path), "classes": next(classes)}
            predictions.append(entry)
    return predictions


def _open(path: str) -> Image | CoopError:
    try:
        return open_image(path)
    except CoopError as error:
        return error


def _classes(method: Method, images: Tensor, top: int) -> list[list[dict[str, Any]]]:
    """The most probable classes of each of the images (B, 3, H, W)."""
    probabilities, labels = _most_probable(method, images.to(method.clip.device), top)
    check_probabilities(probabilities)
    return [
        [{"classname": method.classnames[k], "probability": p} for k, p in zip(columns, row, strict=True)]
        for row, columns in zip(probabilities.tolist(), labels.tolist(), strict=True)
    ]


def _most_probable(method: Method, images: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Probabilities and labels (B, top), the most probable first."""
    parts = method.encode_image(images).float().split(method.images_at_once)
    probabilities = torch.cat([method.logits(part).float().softmax(dim=1) for part in parts])
    return probabilities.topk(min(top, probabilities.shape[1]), dim=1)


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
