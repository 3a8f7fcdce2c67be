"""Accuracy of a method on image features."""

from dataclasses import replace

import torch
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from coop.data.features import FeatureExtractor
from coop.data.fewshot import Splits
from coop.methods.base import Method

BATCH_SIZE = 4096


def features_for(method: Method, extractor: FeatureExtractor, splits: Splits, part: str, frozen: Tensor) -> Tensor:
    """Features (N, E) of the "val" or "test" images as the method sees them.

    Args:
        method: left in eval mode.
        extractor: of the frozen CLIP.
        splits: whose images are encoded again if the method has trained an image encoder.
        part: "val" or "test".
        frozen: the frozen CLIP's features of them, which all other methods see.
    """
    if not method.trains_image_encoder:
        return frozen
    method.to(extractor.device).eval()
    return replace(extractor, encode=method.encode_image, cached=False)(
        getattr(splits, part), splits.preprocess, f"{part} images"
    )


@torch.no_grad()
def score(method: Method, image_features: Tensor, labels: Tensor) -> dict[str, float]:
    """Micro accuracy ("acc", the paper's) and macro accuracy ("macro_acc", the mean over classes), as fractions.

    The text side is computed once, whatever the number of images.

    Args:
        method: over K classes; left in eval mode.
        image_features: (N, E), L2-normalised.
        labels: (N), from 0 to K - 1.
    """
    method.eval()
    device = method.clip.device
    classes = len(method.classnames)
    metrics = MetricCollection(
        {average: MulticlassAccuracy(num_classes=classes, average=average) for average in ("micro", "none")}
    ).to(device)
    for features, target in zip(image_features.split(BATCH_SIZE), labels.split(BATCH_SIZE), strict=True):
        metrics.update(method.logits(features.to(device)), target.to(device))
    scores = metrics.compute()
    # The mean over classes that have images: one without has no accuracy.
    return {"acc": scores["micro"].item(), "macro_acc": scores["none"].cpu()[labels.unique()].mean().item()}
