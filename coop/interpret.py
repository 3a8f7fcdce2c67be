"""python -m coop.interpret run=RUN: words near the context vectors (CoOp, "Interpreting the Learned Prompts")."""

from coop.cli.options import run_command

USAGE = """python -m coop.interpret run=RUN [top=5] [metric=euclidean|cosine] [only_words=true] [out=FILE.json]
         [--config-dir DIR]

  run=RUN             a run's folder, the one that holds prompt.safetensors; or hf:USER/NAME, on the Hugging Face hub
  top=N               how many words for each context vector
  metric=euclidean    as in the paper; or cosine
  only_words=true     leave out special tokens and parts of words and of characters
  out=FILE.json       where the words go (without it: words.json in the run's folder; of the hub, in the current one)
  --config-dir DIR    the folder of your own configs, where the run's method is one of them"""

if __name__ == "__main__":  # before the imports below: --help and most mistakes need no torch
    run_command("interpret", USAGE)

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from coop.cli.options import parse
from coop.errors import CoopError
from coop.evaluation.words import nearest_words
from coop.runs import HISTORY_PICTURE, WORDS
from coop.runs.hub import local_folder, output_folder
from coop.runs.trained import load_trained
from coop.system.files import write_json

CLASSES_SHOWN = 5


@dataclass
class Options:
    """What the command line may set; USAGE says what each means."""

    run: str = "???"
    top: int = 5
    metric: str = "euclidean"
    only_words: bool = False
    out: str | None = None
    config_dir: str | None = None


def main(words: list[str]) -> int:
    """Find, write and show the nearest words; returns the exit code."""
    plain, options = parse(words, Options)
    if plain:
        raise CoopError(f"{plain[0]}: expected key=value; run=RUN takes the folder of a run")
    run_dir = local_folder(options.run)
    method = load_trained(run_dir, accelerator="cpu", config_dir=options.config_dir).method
    contents = nearest_words(method, options.top, options.metric, options.only_words)
    out = Path(options.out).expanduser() if options.out else output_folder(options.run) / WORDS
    write_json(out, contents)
    show(contents, out, run_dir)
    return 0


def show(contents: dict[str, Any], out: Path, run_dir: Path) -> None:
    """The words as a table, and where they and the picture of the context's way lie."""
    vectors: Sequence[dict[str, Any]] = contents["vectors"]
    owner = "prompt" if "prompt" in vectors[0] else "classname"
    owners = list(dict.fromkeys(vector[owner] for vector in vectors))
    specific = owners != [None]
    title = [owner.removesuffix("name")] if specific else []
    table = Table(*title, "vector", f"nearest words ({contents['metric']})")
    for vector in (v for v in vectors if v[owner] in owners[:CLASSES_SHOWN]):
        words = ",  ".join(f"{word['word']} {word['distance']:.3f}" for word in vector["words"])
        table.add_row(*([str(vector[owner])] if specific else []), f"v{vector['vector']}", words)
    Console(markup=False, emoji=False, highlight=False).print(table)
    if len(owners) > CLASSES_SHOWN:
        print(f"the first {CLASSES_SHOWN} of {len(owners)}; all of them: {out}")
    print(f"words    {out}")
    if (picture := run_dir / HISTORY_PICTURE).exists():
        print(f"movement {picture}")
