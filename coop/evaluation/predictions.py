"""What a run predicted for each image, kept in its folder, and metrics that follow from it; imports no torch."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from coop.errors import CoopError
from coop.runs import PREDICTIONS
from coop.system.files import write_atomically

OWN, OOD = "test", "ood"  # names of test sets; those of targets are "targets/NAME"
# Of each image: its label, the predicted label, the probability of that one, the entropy of all K probabilities
# (nats), the probability of the label, and how many classes are more probable than the label. Images of "ood" have
# none of the labels that were predicted among, so no "label*".
DTYPES = {
    "label": np.int32,
    "predicted": np.int32,
    "confidence": np.float32,
    "entropy": np.float32,
    "label_probability": np.float32,
    "label_rank": np.int32,
}
BINS = 15

TestSets = Mapping[str, Mapping[str, np.ndarray]]


def write_predictions(folder: Path, sets: TestSets) -> None:
    """Write the predictions of a run, 24 bytes an image: by test set, arrays (N) by the keys of `DTYPES`."""
    arrays = {f"{name}/{key}": np.asarray(v, DTYPES[key]) for name, kept in sets.items() for key, v in kept.items()}
    write_atomically(folder / PREDICTIONS, save(arrays))


def read_predictions(folder: str | Path) -> dict[str, dict[str, np.ndarray]]:
    """What a run predicted, image by image, in the order of the test images.

    Args:
        folder: of a run of coop.train or coop.evaluate.

    Returns:
        By test set ("test", "targets/caltech101:new", "ood": the images of new classes among the base classes), arrays
        (N): "label", "predicted", "confidence", "entropy", "label_probability", "label_rank" (0: the label is the most
        probable). Images of "ood" have no label.

    Raises:
        CoopError: the folder has no such file (runs of earlier versions), or it is damaged.
    """
    path = Path(folder) / PREDICTIONS
    try:
        arrays = load(path.read_bytes())
    except FileNotFoundError:
        raise CoopError(f"{path}: no such file; runs of earlier versions have none; coop.evaluate writes it") from None
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise CoopError(f"{path}: not readable as predictions ({error}); run it again") from error
    sets: dict[str, dict[str, np.ndarray]] = {}
    for name, array in arrays.items():
        test_set, _, key = name.rpartition("/")
        if DTYPES.get(key) != array.dtype or array.ndim != 1 or not np.isfinite(array).all():
            raise CoopError(f"{path}: {name} is not what coop.train writes there; run it again")
        sets.setdefault(test_set, {})[key] = array
    for name, kept in sets.items():
        if not {"predicted", "confidence"} <= kept.keys() or len({len(array) for array in kept.values()}) != 1:
            raise CoopError(f"{path}: the predictions of {name} are not complete; run it again")
    return sets


def calibration_bins(confidence: np.ndarray, correct: np.ndarray) -> list[dict[str, float]]:
    """Mean confidence, accuracy and number of images of each of 15 equal bins of confidence that has any.

    Of N images: the probability of the predicted class, and whether that is the label.
    """
    edges = np.linspace(0, 1, BINS + 1, dtype=np.float32)
    bins = np.minimum(np.digitize(confidence, edges), BINS)  # 1 belongs to the last
    return [
        {
            "confidence": confidence[bins == index].mean(dtype=float).item(),
            "acc": correct[bins == index].mean(dtype=float).item(),
            "count": int((bins == index).sum()),
        }
        for index in np.unique(bins)
    ]


def calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    """The expected calibration error of the predicted class (Guo et al., ICML 2017), of 15 equal bins."""
    bins = calibration_bins(confidence, correct)
    return sum(b["count"] * abs(b["acc"] - b["confidence"]) for b in bins) / len(confidence)


def ood_detection(inside: np.ndarray, outside: np.ndarray) -> dict[str, float]:
    """How well the maximum probability tells known from unknown classes (Hendrycks and Gimpel, ICLR 2017).

    From the confidence on images of the classes that are predicted (N) and of others (M): "auroc", and "fpr95", the
    share of `outside` above the highest threshold that 95 % of `inside` reach.
    """
    from sklearn.metrics import roc_auc_score  # which takes a second to import

    known = np.repeat([1, 0], [len(inside), len(outside)])
    threshold = np.sort(inside)[::-1][int(np.ceil(0.95 * len(inside))) - 1]
    return {
        "auroc": float(roc_auc_score(known, np.concatenate([inside, outside]))),
        "fpr95": float((outside >= threshold).mean()),
    }
