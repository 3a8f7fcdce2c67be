"""python -m coop.retrieve captions=FILE images=DIR: image-to-text and text-to-image retrieval."""

from coop.cli.options import run_command

USAGE = """python -m coop.retrieve captions=FILE [images=DIR] [split=test] [out=DIR]
         [backbone=NAME pretrained=TAG_OR_FILE | run=RUN_DIR]

  captions=FILE    Karpathy's dataset_coco.json or dataset_flickr30k.json, a CSV file (image,caption), or the folder of
                   a Hugging Face data set
  images=DIR       the folder that the names of images start from (without it: the file's own)
  split=test       of Karpathy's JSON, of a data set, or of a CSV file with that column
  backbone=NAME    of conf/backbone or of open_clip, with pretrained= its weights; without run= and this: tiny
  run=RUN_DIR      captions behind the context that this run learned (a unified one), with its backbone
  out=DIR          where results.json and ranks.csv go (without it: retrieval_results)
  image_column=image caption_column=caption    of a CSV file or a data set
  accelerator=auto num_workers=2 --config-dir DIR    as in coop.train and coop.predict

From an image to texts, the best of its captions counts; from a text, its image. Ties count against the model.
Images that cannot be read are named and left out with their captions, and the exit code is 1."""

if __name__ == "__main__":  # before the imports below: --help and most mistakes need no torch
    run_command("retrieve", USAGE)

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import coop
from coop.cli.options import parse
from coop.errors import CoopError
from coop.retrieval.captions import read_captions
from coop.retrieval.options import AT, RetrieveOptions
from coop.retrieval.page import name_left_out
from coop.runs import CHECKPOINT, CONFIG, PROMPT, RESULTS
from coop.system.files import write_atomically, write_json

WAYS = {"image_to_text": "image to text", "text_to_image": "text to image"}
RANKS = "ranks.csv"


def main(words: list[str]) -> int:
    """Read, encode, rank, write, show; returns the exit code."""
    plain, options = parse(words, RetrieveOptions)
    if plain:
        raise CoopError(f"{plain[0]}: expected key=value; captions=FILE takes the captions, images=DIR the images")
    out = Path(options.out).expanduser()
    if held := [name for name in (CONFIG, PROMPT, CHECKPOINT) if (out / name).exists()]:
        raise CoopError(f"out={out}: holds a run ({held[0]}), whose results would be overwritten; choose another")
    captions = read_captions(options)
    from coop.retrieval.recall import measure  # brings torch

    figures, ranks, left_out = measure(captions, options)
    given = {"captions": options.captions, "split": options.split, "run": options.run}
    results = {"task": "retrieve", "version": coop.__version__, **given, **figures}
    write_atomically(out / RANKS, ranks.to_csv(index=False).encode())
    write_json(out / RESULTS, results)
    show(results, out)
    name_left_out(left_out, f"{out / RESULTS} counts them")
    return 1 if left_out else 0


def show(results: dict[str, Any], out: Path) -> None:
    """The figures, published ones below where the setting is the same, and where everything lies."""
    table = Table("", *(f"R@{k} %" for k in AT), "median rank")
    sources = {"": results, " (published, OpenCLIP)": results.get("published")}
    for way, name in WAYS.items():
        for source, values in sources.items():
            if values:
                recalls = [f"{100 * values[f'{way}/recall@{k}']:.2f}" for k in AT]
                table.add_row(name + source, *recalls, f"{values[f'{way}/median_rank']:g}" if values is results else "")
    console = Console(markup=False, emoji=False, highlight=False)
    learned = f", behind the context of {results['run']}" if results["run"] else ""
    cut = f" ({results['captions_cut']} longer than the text encoder takes, and cut)" if results["captions_cut"] else ""
    left_out = f", {results['n_left_out']:,} left out" if results["n_left_out"] else ""
    counted = f"{results['n_images']:,} images{left_out}, {results['n_captions']:,} captions{cut}"
    console.print(f"\n{results['captions']}: {counted}, {results['backbone']}{learned}")
    console.print(table)
    console.print(f"results  {out / RESULTS}\nranks    {out / RANKS}", soft_wrap=True)
