"""What a method predicts from image features, and its accuracy."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy

from coop.data.features import FeatureExtractor
from coop.data.sampling import Splits
from coop.errors import CoopError
from coop.evaluation.predictions import calibration_bins, calibration_error
from coop.methods.base import Method


class Predictions(NamedTuple):
    """What is predicted for N images, on the CPU.

    Attributes:
        labels: (N) the most probable classes.
        confidence: (N) their probabilities.
        entropy: (N) of the probabilities of all classes, in nats.
        truth_probability: (N) probabilities of the true classes, where these are known.
        truth_rank: (N) how many classes are more probable than the true one.
    """

    labels: Tensor
    confidence: Tensor
    entropy: Tensor | None = None
    truth_probability: Tensor | None = None
    truth_rank: Tensor | None = None

    def kept(self, truth: Tensor | None = None) -> dict[str, np.ndarray]:
        """As `predictions.safetensors` holds them: arrays (N) by name; `truth` (N) are the true labels."""
        arrays = {
            "label": truth,
            "predicted": self.labels,
            "confidence": self.confidence,
            "entropy": self.entropy,
            "label_probability": self.truth_probability,
            "label_rank": self.truth_rank,
        }
        return {name: tensor.numpy() for name, tensor in arrays.items() if tensor is not None}


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
    method: Method, image_features: Tensor, autocast: torch.dtype | None = None, truth: Tensor | None = None
) -> Predictions:
    """The most probable class of each image, computed where the frozen CLIP is.

    The text features are computed once, whatever the number of images, unless they depend on the image.

    Args:
        method: over K classes, on the CLIP's device; left in eval mode.
        image_features: (N, E), or as the method's `feature_kind` says.
        autocast: the run's dtype of mixed precision (`coop.config.autocast_dtype`).
        truth: (N) the true labels, where they are among the K.

    Raises:
        CoopError: probabilities that are NaN.
    """
    method.eval()
    device, size, parts = method.clip.device, method.images_at_once, []
    truths = [None] * len(image_features) if truth is None else truth.to(device).split(size)
    with torch.autocast(device.type, autocast, enabled=autocast is not None):
        for features, labels in zip(image_features.split(size), truths, strict=False):
            parts.append(_predictions(method.logits(features.to(device)).float(), labels))
    predictions = Predictions(*(torch.cat(column).cpu() for column in zip(*parts, strict=True)))
    check_probabilities(predictions.confidence)
    return predictions


def _predictions(logits: Tensor, truth: Tensor | None) -> tuple[Tensor, ...]:
    """The columns of `Predictions` from logits (N, K); the last two if the true labels (N) are known."""
    probabilities = logits.softmax(dim=1)
    columns = logits.argmax(dim=1), probabilities.amax(dim=1), torch.special.entr(probabilities).sum(dim=1)
    if truth is None:
        return columns
    rank = (logits > logits.gather(1, truth[:, None])).sum(dim=1)
    return *columns, probabilities.gather(1, truth[:, None])[:, 0], rank


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


def score(predictions: Predictions, labels: Tensor, num_classes: int) -> dict[str, float]:
    """Accuracies and the calibration error, as fractions.

    "acc" is the micro accuracy (the paper's), "macro_acc" the mean over the classes that have images, "ece" the
    expected calibration error of the predicted class (Guo et al., ICML 2017; 15 bins).

    Args:
        predictions: of N images.
        labels: (N), from 0 to K - 1.
        num_classes: K.
    """
    by_class = accuracy_by_class(predictions, labels, num_classes)
    return {
        "acc": multiclass_accuracy(predictions.labels, labels, num_classes, average="micro").item(),
        "macro_acc": by_class[labels.unique()].mean().item(),
        "ece": calibration_error(predictions.confidence.numpy(), (predictions.labels == labels).numpy()),
    }


def accuracy_by_class(predictions: Predictions, labels: Tensor, num_classes: int) -> Tensor:
    """(K) accuracy on the images of each class; 0 for a class without images."""
    return multiclass_accuracy(predictions.labels, labels, num_classes, average="none")


def as_results(name: str, scores: dict[str, float]) -> dict[str, float]:
    """Metrics under their names in results.json: "test/acc", "test/macro_acc"."""
    return {f"{name}/{key}": value for key, value in scores.items()}


def confused_pairs(predictions: Predictions, labels: Tensor, top: int) -> list[tuple[int, int, int]]:
    """The most frequent mistakes: (label, predicted label, how often), most frequent first."""
    wrong = predictions.labels != labels
    pairs, counts = torch.stack([labels[wrong], predictions.labels[wrong]], dim=1).unique(dim=0, return_counts=True)
    order = counts.argsort(descending=True, stable=True)[:top]
    return [(*pairs[index].tolist(), int(counts[index])) for index in order]


def per_class(predictions: Predictions, labels: Tensor, classnames: Sequence[str], top: int = 20) -> dict:
    """What per_class.json holds: accuracy by class, the pairs that are confused most, calibration."""
    by_class, counts = (
        accuracy_by_class(predictions, labels, len(classnames)),
        labels.bincount(minlength=len(classnames)),
    )
    return {
        "classes": [
            {"classname": name, "n_test": int(count), "acc": acc.item() if count else None}
            for name, count, acc in zip(classnames, counts, by_class, strict=True)
        ],
        "confused": [
            {"classname": classnames[label], "predicted": classnames[predicted], "count": count}
            for label, predicted, count in confused_pairs(predictions, labels, top)
        ],
        "calibration": {
            "ece": score(predictions, labels, len(classnames))["ece"],
            "bins": calibration_bins(predictions.confidence.numpy(), (predictions.labels == labels).numpy()),
        },
    }
