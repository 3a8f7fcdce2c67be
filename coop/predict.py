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

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console
from rich.table import Table

from coop.cli.options import parse
from coop.data.image_files import find_images
from coop.data.readers.listing import printable
from coop.runs.hub import local_folder
from coop.system.files import write_json
from coop.system.validation import MOST_CLASSES, between


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
    run_dir = local_folder(options.run)  # a folder that is not a run's shows up before torch is imported
    paths = [path for path, error in found if error is None]
    # Where there is nothing to predict, there is no need to load a run.
    predicted = iter(_predict(run_dir, options, paths) if paths else [])
    predictions = [
        next(predicted) if error is None else {"path": printable(path), "error": error} for path, error in found
    ]
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


def _predict(run_dir: Path, options: Options, paths: Sequence[str]) -> list[dict[str, Any]]:
    from coop.evaluation.finished import load_run

    return load_run(run_dir, options.accelerator, options.config_dir).predict(paths, options.top)


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
