"""Predictions kept per image: what the file holds, what it refuses, and the metrics that follow from it."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch import nn
from torchmetrics.functional.classification import binary_auroc, multiclass_calibration_error

from coop.errors import CoopError
from coop.evaluation.metrics import predict, score
from coop.evaluation.outcome import cost, uses
from coop.evaluation.predictions import (
    DTYPES,
    PREDICTIONS,
    calibration_bins,
    calibration_error,
    ood_detection,
    read_predictions,
    write_predictions,
)
from coop.training.history import History


class Given(nn.Module):
    """A method whose logits are its features; at most three images at a time."""

    images_at_once, clip = 3, SimpleNamespace(device=torch.device("cpu"))

    def logits(self, features):
        return features


@pytest.fixture
def predicted():
    """Seven images of four classes: logits, labels, predictions."""
    generator = torch.Generator().manual_seed(1)
    logits, labels = torch.randn(7, 4, generator=generator), torch.tensor([0, 1, 2, 3, 0, 1, 2])
    return logits, labels, predict(Given(), logits, labels=labels)


def test_what_is_kept_of_each_image(predicted, tmp_path):
    logits, labels, predictions = predicted
    write_predictions(tmp_path, {"test": predictions, "ood": predict(Given(), logits)})
    found = read_predictions(tmp_path)
    assert list(found["test"]) == sorted(DTYPES, key=list(found["test"]).index)
    probabilities = logits.softmax(dim=1).numpy()
    of_label = probabilities[np.arange(7), labels]
    assert found["test"]["label"].tolist() == labels.tolist()
    assert found["test"]["predicted"].tolist() == probabilities.argmax(axis=1).tolist()
    np.testing.assert_array_equal(found["test"]["confidence"], probabilities.max(axis=1))
    np.testing.assert_array_equal(found["test"]["label_probability"], of_label)
    entropy = [-sum(p * np.log(p) for p in row) for row in probabilities]
    np.testing.assert_allclose(found["test"]["entropy"], entropy, atol=1e-6)
    order = [list(np.argsort(-row)).index(label) for row, label in zip(probabilities, labels.tolist(), strict=True)]
    assert found["test"]["label_rank"].tolist() == order
    assert set(found["ood"]) == {"predicted", "confidence", "entropy"}
    assert (tmp_path / PREDICTIONS).stat().st_size < 1000 + 7 * (24 + 12)
    accuracy = (found["test"]["label_rank"] == 0).mean()
    assert score(predictions, 4)["acc"] == pytest.approx(accuracy)


def test_reading_needs_no_torch():
    code = "import sys, coop.evaluation.predictions; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


WHOLE = {"predicted": np.zeros(3, np.int32), "confidence": np.ones(3, np.float32)}


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "no such file; runs of earlier versions have none; coop.evaluate writes it"),
        (b"half a file", "not readable as predictions"),
        ({"test/confidence": WHOLE["confidence"]}, "the predictions of test are not complete"),
        ({"test/predicted": np.zeros(4, np.int32), "test/confidence": WHOLE["confidence"]}, "are not complete"),
        ({"test/predicted": np.zeros(3), "test/confidence": WHOLE["confidence"]}, "test/predicted is not what"),
        (
            {"test/predicted": WHOLE["predicted"], "test/confidence": np.full(3, np.nan, np.float32)},
            "confidence is not",
        ),
        ({"test/anything": WHOLE["confidence"]}, "test/anything is not what coop.train writes there"),
    ],
)
def test_what_is_no_file_of_predictions_is_refused(tmp_path, content, message):
    if isinstance(content, bytes):
        (tmp_path / PREDICTIONS).write_bytes(content)
    elif content:
        save_file(content, tmp_path / PREDICTIONS)
    with pytest.raises(CoopError, match=message):
        read_predictions(tmp_path)


def naive_calibration_error(confidence, correct, bins=15):
    error = 0.0
    for index in range(bins):
        low, high = index / bins, (index + 1) / bins
        inside = [(p, c) for p, c in zip(confidence, correct, strict=True) if low <= p < high or p == high == 1]
        if inside:
            accuracy = sum(c for _, c in inside) / len(inside)
            error += len(inside) * abs(accuracy - sum(p for p, _ in inside) / len(inside))
    return error / len(confidence)


@pytest.mark.parametrize("sharpness", [0.3, 3, 30])
def test_calibration_error(sharpness):
    """Equal to the naive formula, also where probabilities are exactly 1, and to torchmetrics where none is."""
    torch.manual_seed(0)
    logits, labels = sharpness * torch.randn(500, 7), torch.randint(7, (500,))
    predictions = predict(Given(), logits, labels=labels)
    confidence, correct = predictions["confidence"], predictions["predicted"] == labels.numpy()
    assert (confidence == 1).any() == (sharpness == 30)
    error = calibration_error(confidence, correct)
    assert error == pytest.approx(naive_calibration_error(confidence.tolist(), correct.tolist()), abs=1e-6)
    assert score(predictions, 7)["ece"] == error
    if sharpness < 30:  # its bins are 16, of which the last is that of 1 alone
        theirs = multiclass_calibration_error(logits.softmax(dim=1), labels, num_classes=7, n_bins=15)
        assert error == pytest.approx(theirs.item(), abs=1e-6)
    assert sum(b["count"] for b in calibration_bins(confidence, correct)) == 500


def test_ood_detection():
    generator = np.random.default_rng(0)
    inside, outside = generator.beta(4, 2, 300).astype(np.float32), generator.beta(2, 3, 200).astype(np.float32)
    found = ood_detection(inside, outside)
    scores, known = torch.tensor([*inside, *outside]), torch.tensor([1] * 300 + [0] * 200)
    assert found["auroc"] == pytest.approx(binary_auroc(scores, known).item(), abs=1e-6)
    pairs = (inside[:, None] > outside) + 0.5 * (inside[:, None] == outside)
    assert found["auroc"] == pytest.approx(pairs.mean(), abs=1e-9)
    highest = max(t for t in inside if (inside >= t).mean() >= 0.95)
    assert found["fpr95"] == pytest.approx((outside >= highest).mean())


def test_ood_detection_at_its_ends():
    assert ood_detection(np.array([0.9, 0.8]), np.array([0.1, 0.2])) == {"auroc": 1.0, "fpr95": 0.0}
    assert ood_detection(np.array([0.5, 0.5]), np.array([0.5])) == {"auroc": 0.5, "fpr95": 1.0}


def test_a_step_of_a_resumed_run_is_timed_by_what_this_process_did():
    history, data = History(), SimpleNamespace(extractor=SimpleNamespace(seconds=1.0, device=torch.device("cpu")))
    history.on_train_start(SimpleNamespace(global_step=30), SimpleNamespace(method=None))
    trainer = SimpleNamespace(global_step=50, callbacks=[history])
    found = cost(trainer, data, 5.0)
    assert (found["step_seconds"], found["fit_seconds"]) == (0.25, 5.0)
    assert 50 < found["peak_memory_mb"] < 100_000
    trainer.global_step = 30
    assert cost(trainer, data, 5.0)["step_seconds"] is None


@pytest.mark.parametrize(
    "validation, has_val, used", [("choose", True, True), ("none", True, False), ("choose", 0, False)]
)
def test_validation_images_are_used_by_what_chose_on_them(validation, has_val, used):
    method = nn.Module()
    method.chosen, method.needs_images, method.hand_crafted = {"alpha": 1.0}, False, True
    splits = SimpleNamespace(val=["an image"] * has_val)
    found = uses(SimpleNamespace(validation=validation), method, splits)
    assert found == ["validation images"] * used + ["class descriptions"]
