"""Accuracy of a method on image features."""

import torch
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from coop.methods.base import Method

BATCH_SIZE = 4096


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
        {average: MulticlassAccuracy(num_classes=classes, average=average) for average in ("micro", "macro")}
    ).to(device)
    for features, target in zip(image_features.split(BATCH_SIZE), labels.split(BATCH_SIZE), strict=True):
        metrics.update(method.logits(features.to(device)), target.to(device))
    scores = metrics.compute()
    return {"acc": scores["micro"].item(), "macro_acc": scores["macro"].item()}
