"""The words nearest to context vectors (CoOp, "Interpreting the Learned Prompts")."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from coop.clip.backbone import FrozenCLIP
from coop.clip.text.vocabulary import vocabulary
from coop.errors import CoopError
from coop.methods import Method

METRICS = ("euclidean", "cosine")
CHUNK = 256


def nearest_words(method: Method, top: int = 5, metric: str = "euclidean", only_words: bool = False) -> dict[str, Any]:
    """The words nearest to each context vector: (M, D); (K, M, D) if class-specific; (N, M, D) of N prompts.

    Tokens whose embedding is zero (never trained, as in the bundled backbone) are left out.

    Args:
        method: has context vectors `ctx`.
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
    ids = _known_words(method.clip, only_words)
    found = _nearest(ctx.detach().flatten(0, -2), method.clip.token_embedding.weight[ids.to(ctx.device)], top, metric)
    used = sorted({index for words in found for index, _ in words})
    texts = dict(zip(used, vocabulary(method.clip.tokenizer, ids[used].tolist()), strict=True))
    vectors = [{"vector": m + 1, **owner} for owner in _owners(method) for m in range(ctx.shape[-2])]
    return {
        "metric": metric,
        "vectors": [
            vector | {"words": [{"word": texts[index].text, "distance": distance} for index, distance in words]}
            for vector, words in zip(vectors, found, strict=True)
        ],
    }


def _owners(method: Method) -> list[dict[str, Any]]:
    """What each context of a method belongs to: all classes, one of them, or one of the prompts of all."""
    if method.ctx.ndim == 2:
        return [{"classname": None}]
    if method.class_specific:
        return [{"classname": name} for name in method.classnames]
    return [{"classname": None, "prompt": n + 1} for n in range(len(method.ctx))]


def _known_words(clip: FrozenCLIP, only_words: bool) -> Tensor:
    """Ids (W) of the tokens to compare with."""
    ids = (clip.token_embedding.weight.detach().abs().amax(dim=1) > 0).nonzero().flatten().cpu()
    if not only_words:
        return ids
    tokens = vocabulary(clip.tokenizer, ids.tolist())
    return ids[torch.tensor([token.is_word for token in tokens])]


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
