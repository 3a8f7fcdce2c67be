"""Class names have to tell classes apart: what is one name to the text encoder is refused, or warned about."""

import html
import logging
from collections import defaultdict

from coop.data.readers.listing import shorten
from coop.data.sampling import Splits
from coop.errors import CoopError
from coop.system.files import check_utf8

log = logging.getLogger("coop")


def check_names(splits: Splits, dataset: str) -> None:
    """Refuse classes whose prompts would be the same: nothing that is learned could tell them apart.

    A published list may give two classes one name (ImageNet: "missile", "sunglasses"): a warning, and figures stay
    comparable with those that others have from it. `dataset` is its name, for messages.
    """
    labels = defaultdict(list)
    for label, name in enumerate(splits.classnames):
        check_utf8(name)
        if not as_tokenized(name):
            raise CoopError(f"dataset={dataset}: class {label} is called {name!r}, which has no word; rename it")
        labels[as_tokenized(name)].append(label)
    shared = [same for same in labels.values() if len(same) > 1]
    published = splits.origin == "published"
    refused = [same for same in shared if not published or len({splits.classnames[label] for label in same}) > 1]
    if refused:
        listed = "; ".join(_listed(splits.classnames, same) for same in refused[:3])
        raise CoopError(
            f"dataset={dataset}: classes whose prompts are the same: {listed}. Underscores are spaces and capitals are "
            "small to the tokenizer. Rename one of each, or put the images of one class into one folder or label"
        )
    if shared:
        listed = shorten([_listed(splits.classnames, same) for same in shared])
        log.warning("dataset=%s: different classes share one name and are kept apart: %s", dataset, listed)


def as_tokenized(name: str) -> str:
    """A class name as it reaches the vocabulary: CLIP's tokenizer lowers the case, and resolves entities of HTML."""
    return " ".join(html.unescape(html.unescape(name.replace("_", " "))).lower().split())


def _listed(classnames: list[str], labels: list[int]) -> str:
    """'a_b' and 'a b' (labels 0, 3)."""
    names = " and ".join(repr(classnames[label]) for label in labels)
    return f"{names} (labels {', '.join(map(str, labels))})"
