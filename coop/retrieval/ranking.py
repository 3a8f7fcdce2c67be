"""Which photographs come first: by cosine similarity to a query, or by a run's probability of one of its classes."""

import difflib
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from coop.data.images import open_image
from coop.data.sampling import Item
from coop.errors import CoopError
from coop.methods import Method
from coop.retrieval.encoding import Encoder, encode_texts


def query_feature(encoder: Encoder, words: Sequence[str], like: str | None) -> Tensor:
    """One query (E), L2-normalised: the mean of the L2-normalised features of all that is asked for.

    Args:
        encoder: of texts and photographs.
        words: texts.
        like: path of a photograph, None for none.

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
        open_image(like)  # says what is wrong before a model is at work
        features = encoder.photographs([Item(like, 0, "")], None, "query")
        parts.append(encoder.clip.pooled(features, encoder.photographs.kind))
    return F.normalize(torch.cat(parts).mean(dim=0), dim=0)


def label_of(method: Method, classname: str) -> int:
    """The label of a class of a run.

    Raises:
        CoopError: it learned no such class; names those that are close.
    """
    name = classname.replace("_", " ")
    if name not in method.classnames:
        close = difflib.get_close_matches(name, method.classnames) or method.classnames[:5]
        raise CoopError(
            f"classname={classname}: not one of the {len(method.classnames)} classes of this run, which has "
            f"{', '.join(close)}, ...; other words go without classname="
        )
    return method.classnames.index(name)


@torch.no_grad()
def log_probabilities(method: Method, image_features: Tensor, label: int | None = None) -> Tensor:
    """log p(class | photograph) of all classes (N, K), or of one (N, 1); in double precision, on the CPU.

    Nearly certain photographs have the same probability in single precision.
    """
    columns = slice(None) if label is None else slice(label, label + 1)
    parts = image_features.split(method.images_at_once)
    return torch.cat(
        [method.logits(part.to(method.clip.device)).cpu().double().log_softmax(dim=1)[:, columns] for part in parts]
    )


def best(encoder: Encoder, image_features: Tensor, query: Tensor | int, top: int) -> tuple[Tensor, Tensor]:
    """Scores and rows of the photographs that come first.

    Args:
        encoder: whose photographs.
        image_features: (N, E), or as the method's `feature_kind` says; on the CPU.
        query: (E), for which the score is the cosine similarity, or a label, for which it is the class's probability.
        top: how many, at most N.
    """
    top = min(top, len(image_features))
    if isinstance(query, Tensor):
        # One pass over the features, as fast as memory is: to copy them to a GPU would take longer.
        scores, rows = (encoder.clip.pooled(image_features, encoder.photographs.kind) @ query).topk(top)
        return scores, rows
    scores, rows = log_probabilities(encoder.method, image_features, query)[:, 0].topk(top)
    return scores.exp(), rows
