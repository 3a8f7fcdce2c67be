"""python -m coop.retrieve captions=FILE images=DIR: image-to-text and text-to-image retrieval."""

from coop.cli.options import run

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

From an image to texts, the best of its captions counts; from a text, its image. Ties count against the model."""

if __name__ == "__main__":  # before the imports below: --help and most mistakes need no torch
    run("retrieve", USAGE)

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table
from torch import Tensor

import coop
from coop.cli.options import parse
from coop.data.sampling import Item
from coop.errors import CoopError
from coop.retrieval.captions import Captions, read_captions
from coop.retrieval.encoding import EncoderOptions, encode_texts, load_encoder
from coop.retrieval.recall import AT, both_ways, figures, published
from coop.runs import CHECKPOINT, CONFIG, PROMPT, RESULTS
from coop.system.files import write_atomically, write_json

WAYS = {"image_to_text": "image to text", "text_to_image": "text to image"}
RANKS = "ranks.csv"


@dataclass
class Options(EncoderOptions):
    """What the command line may set; USAGE says what each means."""

    captions: str = "???"
    images: str | None = None
    split: str = "test"
    out: str = "retrieval_results"
    image_column: str = "image"
    caption_column: str = "caption"


def main(words: list[str]) -> int:
    """Read, encode, rank, write, show; returns the exit code."""
    plain, options = parse(words, Options)
    if plain:
        raise CoopError(f"{plain[0]}: expected key=value; captions=FILE takes the captions, images=DIR the images")
    out = Path(options.out).expanduser()
    if held := [name for name in (CONFIG, PROMPT, CHECKPOINT) if (out / name).exists()]:
        raise CoopError(
            f"out={out}: holds a run ({held[0]}), whose results would be overwritten; choose another folder"
        )
    images = Path(options.images) if options.images else None
    columns = options.image_column, options.caption_column
    captions = read_captions(Path(options.captions), images, options.split, *columns)
    encoder = load_encoder(options)
    texts, cut = encode_texts(encoder, captions.texts)
    frozen = encoder.photographs([Item(path, 0, "") for path in captions.images], None, "images")
    found = both_ways(captions, frozen.to(encoder.clip.device), texts.to(encoder.clip.device))
    results = {
        "task": "retrieve",
        "version": coop.__version__,
        "captions": options.captions,
        "split": options.split,
        "backbone": encoder.clip.name,
        "pretrained": encoder.clip.pretrained,
        "run": options.run,
        "n_images": len(captions.images),
        "n_captions": len(captions.texts),
        "captions_cut": cut,
        **figures(found),
    }
    if options.run is None:
        results["published"] = published(captions, options.split, encoder.clip.name, encoder.clip.pretrained)
    write_atomically(out / RANKS, rank_table(captions, found).to_csv(index=False).encode())
    write_json(out / RESULTS, results)
    show(results, out)
    return 0


def rank_table(captions: Captions, found: dict[str, Tensor]) -> pd.DataFrame:
    """A row for each query: the direction, the image, the caption (of an image none), the rank."""
    of_images = pd.DataFrame({"image": captions.images, "caption": "", "rank": found["image_to_text"].numpy()})
    paths = [captions.images[owner] for owner in captions.owners]
    of_texts = pd.DataFrame({"image": paths, "caption": captions.texts, "rank": found["text_to_image"].numpy()})
    return pd.concat({"image_to_text": of_images, "text_to_image": of_texts}, names=["direction"]).reset_index(level=0)


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
    counted = f"{results['n_images']:,} images, {results['n_captions']:,} captions{cut}"
    console.print(f"\n{results['captions']}: {counted}, {results['backbone']}{learned}")
    console.print(table)
    console.print(f"results  {out / RESULTS}\nranks    {out / RANKS}", soft_wrap=True)
