"""Which photographs come first: by cosine similarity to a query, or by a run's probability of one of its classes."""

import difflib
import os
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from coop.data.images import open_image
from coop.errors import CoopError
from coop.methods import Method
from coop.retrieval.encoding import Encoder, encode_photographs, encode_texts, load_encoder
from coop.retrieval.options import SearchOptions


def search(paths: Sequence[str], words: Sequence[str], options: SearchOptions) -> dict[str, Any]:
    """The photographs that fit words, `like=` and `classname=` best.

    Returns:
        What is looked for ("query") and with what ("run", "backbone"), what the "score" is, how many "photographs"
        there are and how many of them are "new", "left_out" (messages by path), and the "hits", the best first, each
        with its "path", its "score" and, of a run, what it "predicted" ("classname" and "probability").

    Raises:
        CoopError: what is looked for cannot be, or none of the photographs can be read.
    """
    classname = options.classname
    encoder = load_encoder(options)
    query = label_of(encoder.method, classname) if classname else query_feature(encoder, words, options.like)
    found = encode_photographs(encoder.photographs, paths)
    scores, rows = best_photographs(encoder, found.features, query, options.top)
    hits = [{"path": found.paths[r], "score": s} for r, s in zip(rows.tolist(), scores.tolist(), strict=True)]
    if encoder.method is not None:
        probabilities, labels = log_probabilities(encoder, found.features[rows]).exp().max(dim=1)
        for hit, p, k in zip(hits, probabilities.tolist(), labels.tolist(), strict=True):
            hit["predicted"] = {"classname": encoder.method.classnames[k], "probability": p}
    return {
        "query": " + ".join([*words, *filter(None, [classname, options.like])]),
        "run": options.run,
        "backbone": encoder.clip.name,
        "score": "probability" if classname else "cosine similarity",
        "photographs": len(found.paths),
        "new": found.new,
        "left_out": found.left_out,
        "hits": hits,
    }


def query_feature(encoder: Encoder, words: Sequence[str], like: str | None) -> Tensor:
    """One query (E), L2-normalized: the mean of the L2-normalized features of words and of the photograph `like`.

    Raises:
        CoopError: a text that is too long, or a photograph that cannot be read.
    """
    parts = []
    if words:
        features, cut = encode_texts(encoder, words)
        if cut:
            longest = max(words, key=len)
            raise CoopError(f'"{longest}": longer than the text encoder takes ({encoder.clip.context_length} tokens)')
        parts.append(features)
    if like:
        like = os.path.expanduser(like)
        open_image(like)  # says what is wrong before a model is at work
        features = encoder.photographs([like], None, "query")
        parts.append(encoder.clip.pooled(features, encoder.photographs.kind))
    return F.normalize(torch.cat(parts).mean(dim=0), dim=0)


def label_of(method: Method, classname: str) -> int:
    """The label of a class of a run; raises CoopError, which names those that are close, if it has no such class."""
    name = classname.replace("_", " ")
    if name not in method.classnames:
        close = difflib.get_close_matches(name, method.classnames) or method.classnames[:5]
        raise CoopError(
            f"classname={classname}: not one of the {len(method.classnames)} classes of this run, which has "
            f"{', '.join(close)}, ...; other words go without classname="
        )
    return method.classnames.index(name)


@torch.no_grad()
def log_probabilities(encoder: Encoder, image_features: Tensor, label: int | None = None) -> Tensor:
    """log p(class | photograph) of all classes (N, K), or of one (N, 1); in double precision, on the CPU.

    Nearly certain photographs have the same probability in single precision.
    """
    method, autocast = encoder.method, encoder.photographs.autocast
    columns, device = slice(None) if label is None else slice(label, label + 1), method.clip.device
    with torch.autocast(device.type, autocast, enabled=autocast is not None):
        logits = (method.logits(part.to(device)).cpu() for part in image_features.split(method.images_at_once))
        return torch.cat([part.double().log_softmax(dim=1)[:, columns] for part in logits])


def best_photographs(encoder: Encoder, image_features: Tensor, query: Tensor | int, top: int) -> tuple[Tensor, Tensor]:
    """Scores and rows of the `top` photographs, or of all N if they are fewer.

    Args:
        encoder: whose photographs.
        image_features: (N, E), or as the method's `feature_kind` says; on the CPU.
        query: (E), for which the score is the cosine similarity, or a label, for which it is the class's probability.
        top: how many.
    """
    top = min(top, len(image_features))
    if isinstance(query, Tensor):
        # One pass over the features, as fast as memory is: to copy them to a GPU would take longer.
        return (encoder.clip.pooled(image_features, encoder.photographs.kind) @ query).topk(top)
    scores, rows = log_probabilities(encoder, image_features, query)[:, 0].topk(top)
    return scores.exp(), rows
