"""python -m coop.interpret run=RUN: words near the context vectors (CoOp, "Interpreting the Learned Prompts")."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from coop.cli.options import parse, run
from coop.clip.backbone import FrozenCLIP
from coop.clip.text.vocabulary import vocabulary
from coop.errors import CoopError
from coop.methods import Method
from coop.runs.trained import load_trained
from coop.system.files import write_json
from coop.training.history import HISTORY

USAGE = """python -m coop.interpret run=RUN_DIR [top=5] [metric=euclidean|cosine] [only_words=true] [out=FILE.json]
         [--config-dir DIR]

  run=RUN_DIR         a run's folder, the one that holds prompt.safetensors
  top=N               how many words for each context vector
  metric=euclidean    as in the paper; or cosine
  only_words=true     leave out special tokens and parts of words and of characters
  out=FILE.json       where the words go (without it: words.json in the run's folder)
  --config-dir DIR    the folder of your own configs, where the run's method is one of them"""

WORDS = "words.json"
METRICS = ("euclidean", "cosine")
CHUNK = 256
CLASSES_SHOWN = 5


@dataclass
class Options:
    """Of the command."""

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
        raise CoopError(f"{plain[0]}: expected key=value; run=RUN_DIR takes the folder of a run")
    run_dir = Path(options.run).expanduser()
    method = load_trained(run_dir, accelerator="cpu", config_dir=options.config_dir).method
    contents = nearest_words(method, options.top, options.metric, options.only_words)
    out = Path(options.out).expanduser() if options.out else run_dir / WORDS
    write_json(out, contents)
    show(contents, out, run_dir)
    return 0


def nearest_words(method: Method, top: int = 5, metric: str = "euclidean", only_words: bool = False) -> dict[str, Any]:
    """The words nearest to each context vector of a method that has context vectors `ctx`.

    They are (M, D); (K, M, D) if class-specific; (N, M, D) where each class has N prompts.

    Tokens whose embedding is zero (never trained, as in the bundled backbone) are left out.

    Args:
        method: a trained method.
        top: how many words for each vector.
        metric: "euclidean" (the paper's), smallest first, or "cosine" (its similarity), largest first.
        only_words: leave out special tokens, parts of words and parts of characters.

    Returns:
        What words.json holds: "metric", and under "vectors", for each, its number from 1, the class it belongs to
        (None for a unified context), the prompt it belongs to where there are several ("prompt", from 1), and its
        words with their distances.

    Raises:
        CoopError: a method without context vectors, or options that there are not.
    """
    ctx = getattr(method, "ctx", None)
    if ctx is None:
        raise CoopError(f"{type(method).__name__} has no context vectors: there are no words to compare them with")
    if metric not in METRICS:
        raise CoopError(f"metric={metric}: allowed are {', '.join(METRICS)}")
    if top < 1:
        raise CoopError(f"top={top}: must be at least 1")
    ids, texts = _known_words(method.clip, only_words)
    if ctx.ndim == 2:
        owners: list[dict[str, Any]] = [{"classname": None}]
    elif method.class_specific:
        owners = [{"classname": name} for name in method.classnames]
    else:
        owners = [{"classname": None, "prompt": n + 1} for n in range(len(ctx))]
    found = _nearest(ctx.detach().flatten(0, -2), method.clip.token_embedding.weight[ids.to(ctx.device)], top, metric)
    vectors = [{"vector": m + 1, **owner} for owner in owners for m in range(ctx.shape[-2])]
    return {
        "metric": metric,
        "vectors": [
            vector | {"words": [{"word": texts[index], "distance": distance} for index, distance in words]}
            for vector, words in zip(vectors, found, strict=True)
        ],
    }


def _known_words(clip: FrozenCLIP, only_words: bool) -> tuple[Tensor, list[str]]:
    """Ids (W) of the tokens to compare with, and their texts."""
    weight = clip.token_embedding.weight
    trained = weight.detach().abs().amax(dim=1).cpu() > 0
    tokens = vocabulary(clip.tokenizer, len(weight))
    kept = [i for i, token in enumerate(tokens) if trained[i] and (token.is_word or not only_words)]
    return torch.tensor(kept), [tokens[i].text for i in kept]


@torch.no_grad()
def _nearest(vectors: Tensor, words: Tensor, top: int, metric: str) -> list[list[tuple[int, float]]]:
    """For each of the vectors (N, D), (index, distance) of the nearest of the words (W, D)."""
    top, words = min(top, len(words)), words.float()
    found = []
    for chunk in vectors.float().split(CHUNK):
        if metric == "cosine":
            values, indices = (F.normalize(chunk, dim=1) @ F.normalize(words, dim=1).T).topk(top, dim=1)
        else:
            values, indices = torch.cdist(chunk, words).topk(top, dim=1, largest=False)
        pairs = zip(indices.tolist(), values.tolist(), strict=True)
        found += [list(zip(row, distances, strict=True)) for row, distances in pairs]
    return found


def show(contents: dict[str, Any], out: Path, run_dir: Path) -> None:
    """The words as a table, and where they and the picture of the context's way lie."""
    vectors: Sequence[dict[str, Any]] = contents["vectors"]
    owner = "prompt" if "prompt" in vectors[0] else "classname"
    classes = list(dict.fromkeys(vector[owner] for vector in vectors))
    specific = classes != [None]
    title = [owner.removesuffix("name")] if specific else []
    table = Table(*title, "vector", f"nearest words ({contents['metric']})")
    for vector in (v for v in vectors if v[owner] in classes[:CLASSES_SHOWN]):
        words = ",  ".join(f"{word['word']} {word['distance']:.3f}" for word in vector["words"])
        table.add_row(*([str(vector[owner])] if specific else []), f"v{vector['vector']}", words)
    console = Console(markup=False, emoji=False, highlight=False)
    console.print(table)
    if len(classes) > CLASSES_SHOWN:
        console.print(f"the first {CLASSES_SHOWN} of {len(classes)}; all of them: {out}")
    console.print(f"words    {out}", soft_wrap=True)
    if (picture := (run_dir / HISTORY).with_suffix(".png")).exists():
        console.print(f"movement {picture}", soft_wrap=True)


if __name__ == "__main__":
    run(main, USAGE)
