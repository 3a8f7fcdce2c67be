"""What a method predicts from image features, and its accuracy."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import repeat

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy

from coop.data.features import FeatureExtractor
from coop.data.sampling import Splits
from coop.errors import CoopError
from coop.evaluation.predictions import calibration_bins, calibration_error
from coop.methods.base import Method


def features_for(method: Method, extractor: FeatureExtractor, splits: Splits, part: str, frozen: Tensor) -> Tensor:
    """Features (N, E) of the "val" or "test" images as the method sees them.

    Args:
        method: left in eval mode.
        extractor: of the frozen CLIP.
        splits: whose images are encoded again if the method has trained an image encoder.
        part: "val" or "test".
        frozen: the frozen CLIP's features of them, which all other methods see.
    """
    if not method.needs_images:
        return frozen
    method.to(extractor.device).eval()
    return replace(extractor, encode=method.encode_image, cached=False)(
        getattr(splits, part), splits.preprocess, f"{part} images"
    )


@torch.no_grad()
def predict(
    method: Method, image_features: Tensor, autocast: torch.dtype | None = None, labels: Tensor | None = None
) -> dict[str, np.ndarray]:
    """The most probable class of each image, computed where the frozen CLIP is.

    The text features are computed once, whatever the number of images, unless they depend on the image.

    Args:
        method: over K classes, on the CLIP's device; left in eval mode.
        image_features: (N, E), or as the method's `feature_kind` says.
        autocast: the run's dtype of mixed precision (`coop.config.autocast_dtype`).
        labels: (N), where they are among the K.

    Returns:
        Arrays (N) by the keys of `coop.evaluation.predictions.DTYPES`; "label*" with `labels` alone.

    Raises:
        CoopError: probabilities that are NaN.
    """
    method.eval()
    device, size, parts = method.clip.device, method.images_at_once, []
    truths = repeat(None) if labels is None else labels.to(device).split(size)
    with torch.autocast(device.type, autocast, enabled=autocast is not None):
        for features, truth in zip(image_features.split(size), truths, strict=False):
            parts.append(_predicted(method.logits(features.to(device)).float(), truth))
    predicted = {key: torch.cat([part[key] for part in parts]).cpu() for key in parts[0]}
    check_probabilities(predicted["confidence"])
    return {key: column.numpy() for key, column in predicted.items()}


def _predicted(logits: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
    """What `predict` gives, of logits (N, K)."""
    probabilities = logits.softmax(dim=1)
    columns = {
        "predicted": logits.argmax(dim=1),
        "confidence": probabilities.amax(dim=1),
        "entropy": torch.special.entr(probabilities).sum(dim=1),
    }
    if labels is None:
        return columns
    return columns | {
        "label": labels,
        "label_probability": probabilities.gather(1, labels[:, None])[:, 0],
        "label_rank": (logits > logits.gather(1, labels[:, None])).sum(dim=1),
    }


def check_probabilities(probabilities: Tensor) -> None:
    """Refuse what no accuracy can be computed from.

    Raises:
        CoopError: one is NaN.
    """
    if probabilities.isnan().any():
        raise CoopError(
            "the probabilities of classes are not numbers (NaN): what was learned is damaged, or too large for this "
            "precision; train the run anew, with trainer.precision=32 or a lower optimizer.lr"
        )


def score(predicted: Mapping[str, np.ndarray], num_classes: int) -> dict[str, float]:
    """Accuracies and the calibration error of what `predict` gives with labels, as fractions.

    "acc" is the micro accuracy (the paper's), "macro_acc" the mean over the classes that have images, "ece" the
    expected calibration error of the predicted class (Guo et al., ICML 2017; 15 bins).
    """
    found, labels = (torch.from_numpy(predicted[key]) for key in ("predicted", "label"))
    return {
        "acc": multiclass_accuracy(found, labels, num_classes, average="micro").item(),
        "macro_acc": accuracy_by_class(predicted, num_classes)[labels.unique()].mean().item(),
        "ece": calibration_error(predicted["confidence"], predicted["predicted"] == predicted["label"]),
    }


def accuracy_by_class(predicted: Mapping[str, np.ndarray], num_classes: int) -> Tensor:
    """(K) accuracy on the images of each class; 0 for a class without images."""
    found, labels = (torch.from_numpy(predicted[key]) for key in ("predicted", "label"))
    return multiclass_accuracy(found, labels, num_classes, average="none")


def as_results(name: str, scores: dict[str, float]) -> dict[str, float]:
    """Metrics under their names in results.json: "test/acc", "test/macro_acc"."""
    return {f"{name}/{key}": value for key, value in scores.items()}


def per_class(predicted: Mapping[str, np.ndarray], classnames: Sequence[str], top: int = 20) -> dict:
    """What per_class.json holds: accuracy by class, the pairs that are confused most, calibration."""
    labels, found = predicted["label"], predicted["predicted"]
    counts = np.bincount(labels, minlength=len(classnames)).tolist()
    accuracies = accuracy_by_class(predicted, len(classnames)).tolist()
    wrong = np.stack([labels, found], axis=1)[labels != found]
    pairs, times = np.unique(wrong, axis=0, return_counts=True)
    most = np.argsort(-times, kind="stable")[:top]
    return {
        "classes": [
            {"classname": name, "n_test": count, "acc": acc if count else None}
            for name, count, acc in zip(classnames, counts, accuracies, strict=True)
        ],
        "confused": [
            {"classname": classnames[label], "predicted": classnames[other], "count": count}
            for (label, other), count in zip(pairs[most].tolist(), times[most].tolist(), strict=True)
        ],
        "calibration": {
            "ece": calibration_error(predicted["confidence"], labels == found),
            "bins": calibration_bins(predicted["confidence"], labels == found),
        },
    }
