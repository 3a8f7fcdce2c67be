"""Recall at 1, 5 and 10 and the median rank, counted as CLIP and OpenCLIP count them; published figures beside."""

from collections.abc import Container
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from coop.retrieval.captions import Captions
from coop.retrieval.encoding import encode_photographs, encode_texts, load_encoder
from coop.retrieval.options import AT, RetrieveOptions

PUBLISHED = Path(__file__).parent / "published.csv"
SCORES_AT_ONCE = 2**25  # bounds the memory: 128 MB of similarities


def measure(captions: Captions, options: RetrieveOptions) -> tuple[dict[str, Any], pd.DataFrame, dict[str, str]]:
    """Encode images and captions, and rank; images that cannot be read are left out with their captions.

    Returns:
        Figures as in results.json, a row for each query (`rank_table`), and messages by path of what is left out.

    Raises:
        CoopError: no image can be read, or a run whose context is not unified.
    """
    encoder = load_encoder(options)
    texts, cut = encode_texts(encoder, captions.texts)
    photographs, clip = encode_photographs(encoder.photographs, captions.images), encoder.clip
    captions, rows = readable(captions, photographs.left_out)
    found = both_ways(captions, photographs.features.to(clip.device), texts[rows].to(clip.device))
    figures = {
        "backbone": clip.name,
        "pretrained": clip.pretrained,
        "n_images": len(captions.images),
        "n_captions": len(captions.texts),
        "n_left_out": len(photographs.left_out),
        "captions_cut": cut,
        **recalls(found),
    }
    if options.run is None:
        figures["published"] = published(captions, options.split, clip.name, clip.pretrained)
    return figures, rank_table(captions, found), photographs.left_out


def readable(captions: Captions, left_out: Container[str]) -> tuple[Captions, list[int]]:
    """Captions without those of images that are left out, and their rows among all captions."""
    kept = [index for index, path in enumerate(captions.images) if path not in left_out]
    place = {index: new for new, index in enumerate(kept)}
    rows = [row for row, owner in enumerate(captions.owners) if owner in place]
    texts, owners = [captions.texts[row] for row in rows], [place[captions.owners[row]] for row in rows]
    return captions._replace(images=[captions.images[index] for index in kept], texts=texts, owners=owners), rows


def ranks(queries: Tensor, owners: Tensor, gallery: Tensor, gallery_owners: Tensor) -> Tensor:
    """At which place (N), from 1, the first right answer to each query comes; ties count against it.

    Args:
        queries: (N, E), L2-normalized.
        owners: (N), of each query, its image.
        gallery: (G, E), what is ranked.
        gallery_owners: (G); an answer is right if its owner is the query's.
    """
    found = []
    rows = max(1, SCORES_AT_ONCE // len(gallery))
    for part, owner in zip(queries.split(rows), owners.split(rows), strict=True):
        scores, right = part @ gallery.T, owner[:, None] == gallery_owners
        best = scores.masked_fill(~right, -torch.inf).amax(dim=1, keepdim=True)
        found.append(1 + (~(scores < best) & ~right).sum(dim=1))  # what is no number counts against it, too
    return torch.cat(found)


def both_ways(captions: Captions, images: Tensor, texts: Tensor) -> dict[str, Tensor]:
    """Ranks by direction: the best of each image's captions (I), and the image of each caption (T).

    Args:
        captions: say which belong together.
        images: image_features (I, E).
        texts: text_features (T, E), on the same device.
    """
    owners = torch.tensor(captions.owners, device=images.device)
    itself = torch.arange(len(images), device=images.device)
    return {
        "image_to_text": ranks(images, itself, texts, owners).cpu(),
        "text_to_image": ranks(texts, owners, images, itself).cpu(),
    }


def recalls(found: dict[str, Tensor]) -> dict[str, float]:
    """Under "image_to_text/recall@1" and so on; recalls as fractions."""
    shares = {f"{way}/recall@{k}": (r <= k).double().mean().item() for way, r in found.items() for k in AT}
    return shares | {f"{way}/median_rank": r.double().quantile(0.5).item() for way, r in found.items()}


def rank_table(captions: Captions, found: dict[str, Tensor]) -> pd.DataFrame:
    """A row for each query: the direction, the image, the caption (of an image none), the rank."""
    of_images = pd.DataFrame({"image": captions.images, "caption": "", "rank": found["image_to_text"].numpy()})
    paths = [captions.images[owner] for owner in captions.owners]
    of_texts = pd.DataFrame({"image": paths, "caption": captions.texts, "rank": found["text_to_image"].numpy()})
    return pd.concat({"image_to_text": of_images, "text_to_image": of_texts}, names=["direction"]).reset_index(level=0)


def published(captions: Captions, split: str, backbone: str, pretrained: str | None) -> dict[str, Any] | None:
    """The published figures of the same images, captions and weights, None if there are none."""
    table = pd.read_csv(PUBLISHED, comment="#")
    same = (table["dataset"] == captions.dataset) & (table["n_images"] == len(captions.images))
    same &= (table["backbone"] == backbone) & (table["pretrained"] == pretrained) & (split == "test")
    rows = table[same].drop(columns=["n_images"]).to_dict("records")
    return rows[0] if rows else None
