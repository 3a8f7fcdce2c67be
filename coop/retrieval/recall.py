"""Recall at 1, 5 and 10 and the median rank, counted as CLIP and OpenCLIP count them; published figures beside."""

from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from coop.retrieval.captions import Captions

PUBLISHED = Path(__file__).parent / "published.csv"
AT = (1, 5, 10)
SCORES_AT_ONCE = 2**25  # bounds the memory: 128 MB of similarities


def ranks(queries: Tensor, owners: Tensor, gallery: Tensor, gallery_owners: Tensor) -> Tensor:
    """At which place (N), from 1, the first right answer to each query comes; ties count against it.

    Args:
        queries: (N, E), L2-normalised.
        owners: (N), of each query, its image.
        gallery: (G, E), what is ranked.
        gallery_owners: (G); an answer is right if its owner is the query's.
    """
    found = []
    rows = max(1, SCORES_AT_ONCE // len(gallery))
    for part, owner in zip(queries.split(rows), owners.split(rows), strict=True):
        scores, right = part @ gallery.T, owner[:, None] == gallery_owners
        best = scores.masked_fill(~right, -torch.inf).amax(dim=1, keepdim=True)
        found.append(1 + ((scores >= best) & ~right).sum(dim=1))
    return torch.cat(found)


def both_ways(captions: Captions, images: Tensor, texts: Tensor) -> dict[str, Tensor]:
    """Ranks by direction: the best of each image's captions (I), and the image of each caption (T).

    Args:
        captions: whose.
        images: image_features (I, E).
        texts: text_features (T, E), on the same device.
    """
    owners = torch.tensor(captions.owners, device=images.device)
    itself = torch.arange(len(images), device=images.device)
    return {
        "image_to_text": ranks(images, itself, texts, owners).cpu(),
        "text_to_image": ranks(texts, owners, images, itself).cpu(),
    }


def figures(found: dict[str, Tensor]) -> dict[str, float]:
    """Under "image_to_text/recall@1" and so on; recalls as fractions."""
    recalls = {f"{way}/recall@{k}": (r <= k).double().mean().item() for way, r in found.items() for k in AT}
    return recalls | {f"{way}/median_rank": r.double().quantile(0.5).item() for way, r in found.items()}


def published(captions: Captions, split: str, backbone: str, pretrained: str | None) -> dict[str, Any] | None:
    """The published figures of the same images, captions and weights, None if there are none."""
    table = pd.read_csv(PUBLISHED, comment="#")
    same = (table["dataset"] == captions.dataset) & (table["n_images"] == len(captions.images))
    same &= (table["backbone"] == backbone) & (table["pretrained"] == pretrained) & (split == "test")
    rows = table[same].drop(columns=["n_images"]).to_dict("records")
    return rows[0] if rows else None
