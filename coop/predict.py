"""python -m coop.predict run=RUN IMAGE...: what a learned prompt sees in images."""

import glob
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor

from coop.commandline import parse, run
from coop.data.images import open_image
from coop.data.listing import list_folder
from coop.data.transforms import test_transform
from coop.errors import CoopError
from coop.files import write_json
from coop.methods import Method
from coop.progress import progress
from coop.trained import load_trained

USAGE = """python -m coop.predict run=RUN_DIR IMAGE... [top=5] [json=true] [out=FILE.json] [accelerator=auto]

  run=RUN_DIR      a run's folder, the one that holds prompt.safetensors
  IMAGE            an image file, a folder (with all that is beneath it), or a pattern such as 'photos/*.jpg'
  top=N            how many classes for each image
  json=true        print JSON instead of a table
  out=FILE.json    write the same JSON to a file

An image that cannot be read is named, the others go on, and the exit code is 1."""

BATCH_SIZE = 32


@dataclass
class Options:
    """Of the command."""

    run: str = "???"
    top: int = 5
    json: bool = False
    out: str | None = None
    accelerator: str = "auto"


def main(words: list[str]) -> int:
    """Predict and show; returns the exit code."""
    patterns, options = parse(words, Options)
    if options.top < 1:
        raise CoopError(f"top={options.top}: must be at least 1")
    paths = list(find_images(patterns))
    method = load_trained(Path(options.run).expanduser(), accelerator=options.accelerator).method
    failed: list[str] = []
    predictions = predict_images(method, paths, options.top, failed)
    if options.out:
        write_json(Path(options.out).expanduser(), predictions)
    if options.json:
        print(json.dumps(predictions, indent=2, ensure_ascii=False))
    else:
        show(predictions)
    for message in failed:
        print(f"error: {message}", file=sys.stderr)
    if failed:
        print(f"error: {len(failed)} of {len(paths)} images could not be read", file=sys.stderr)
    return 1 if failed else 0


def find_images(patterns: Sequence[str]) -> Iterator[str]:
    """The image files that words of the command line mean: files, folders with all beneath them, patterns.

    Raises:
        CoopError: one of them means nothing that is there.
    """
    if not patterns:
        raise CoopError("give images, folders of images, or patterns such as 'photos/*.jpg'")
    for pattern in patterns:
        path = Path(pattern).expanduser()
        if path.is_dir():
            found = list(_beneath(path))
        elif path.exists():
            found = [str(path)]
        else:
            matches = sorted(glob.glob(str(path), recursive=True))
            found = [
                image for match in matches for image in (_beneath(Path(match)) if Path(match).is_dir() else [match])
            ]
        if not found:
            raise CoopError(f"{pattern}: no such image, and no folder or pattern that has any")
        yield from found


def _beneath(folder: Path) -> Iterator[str]:
    listing = list_folder(folder)
    yield from (str(folder / name) for name in listing.images)
    for name in listing.folders:
        yield from _beneath(folder / name)


@torch.no_grad()
def predict_images(method: Method, paths: Sequence[str], top: int, failed: list[str]) -> list[dict[str, Any]]:
    """The most probable classes of each image that can be read.

    Args:
        method: a trained method.
        paths: of images.
        top: how many classes.
        failed: what could not be read is added here, a message each.

    Returns:
        "path", and under "classes" the most probable first, each with its "classname" and "probability".
    """
    transform, predictions = test_transform(method.clip.preprocess_cfg), []
    starts = range(0, len(paths), BATCH_SIZE)
    for start in progress(starts, desc="images", unit="batch", hidden=len(starts) <= 1, leave=False):
        opened = list(_open(paths[start : start + BATCH_SIZE], failed))
        if not opened:
            continue
        images = torch.stack([transform(image) for _, image in opened]).to(method.clip.device)
        probabilities, labels = _most_probable(method, images, top)
        for (path, _), row, columns in zip(opened, probabilities.tolist(), labels.tolist(), strict=True):
            classes = [{"classname": method.classnames[k], "probability": p} for k, p in zip(columns, row, strict=True)]
            predictions.append({"path": path, "classes": classes})
    return predictions


def _open(paths: Sequence[str], failed: list[str]) -> Iterator[tuple[str, Image]]:
    for path in paths:
        try:
            yield path, open_image(path)
        except CoopError as error:
            failed.append(str(error))


def _most_probable(method: Method, images: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Probabilities and labels (B, top), the most probable first."""
    parts = method.encode_image(images).float().split(method.images_at_once)
    probabilities = torch.cat([method.logits(part).float().softmax(dim=1) for part in parts])
    return probabilities.topk(min(top, probabilities.shape[1]), dim=1)


def show(predictions: Sequence[dict[str, Any]]) -> None:
    """One line per image."""
    table = Table()
    table.add_column("image", overflow="fold")
    table.add_column("class: probability %, the most probable first")
    for prediction in predictions:
        classes = ",  ".join(f"{c['classname']} {100 * c['probability']:.1f}" for c in prediction["classes"])
        table.add_row(prediction["path"], classes)
    Console(markup=False, emoji=False, highlight=False).print(table)


if __name__ == "__main__":
    run(main, USAGE)
