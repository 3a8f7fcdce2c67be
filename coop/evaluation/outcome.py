"""What a trained method achieves, and what its run's folder shows of it."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path

import pytorch_lightning as pl
from omegaconf import DictConfig

import coop
from coop.clip.backbone import pooled
from coop.config import METHOD_KEYS, arguments
from coop.data.datamodule import FewShotData
from coop.data.sampling import Splits
from coop.evaluation.metrics import Predictions, features_for, figures, per_class, predict, score
from coop.evaluation.targets import Target, harmonic_mean, test_targets
from coop.evaluation.words import WORDS, nearest_words
from coop.methods import Method
from coop.methods.zero_shot import ZeroShot
from coop.runs.folder import RESULTS
from coop.system.files import write_json
from coop.training.history import History
from coop.training.loggers import log_results

log = logging.getLogger("coop")

PER_CLASS = "per_class.json"
# Beyond, comparing every vector with every word takes longer than a short training.
VECTORS_COMPARED = 2000


def evaluate(cfg: DictConfig, method: Method, data: FewShotData, targets: Sequence[Target]) -> tuple[dict, Predictions]:
    """What a trained method achieves on its own test images and on its targets, as in results.json."""
    scores, predictions = test(method, data, cfg.dataset.template)
    if targets:
        frozen = {target.name: data.test_features(target.name) for target in targets}
        scores["targets"] = test_targets(method, cfg.method, targets, data.extractor, frozen)
        own = {"dataset": cfg.dataset.name, "classes": cfg.dataset.classes}
        scores |= harmonic_mean(own | scores)
    return scores, predictions


def test(method: Method, data: FewShotData, template: str) -> tuple[dict, Predictions]:
    """Accuracies on the test and validation images, zero-shot beside them, as in results.json; and the predictions.

    Args:
        method: trained.
        data: of the run.
        template: of zero-shot CLIP.
    """
    splits, classes = data.splits, len(method.classnames)

    def predictions_on(part: str, frozen) -> Predictions:
        return predict(method, features_for(method, data.extractor, splits, part, frozen), data.extractor.autocast)

    started = time.perf_counter()
    labels, predictions = splits.labels("test"), predictions_on("test", data.test_features())
    scores = figures("test", score(predictions, labels, classes))
    seconds = time.perf_counter() - started
    scores["val/acc"] = None
    if splits.val and data.validation:
        on_val = predictions_on("val", data.val_features[0])
        scores["val/acc"] = score(on_val, splits.labels("val"), classes)["acc"]
    zero_shot = ZeroShot(method.clip, splits.classnames, template=template)
    frozen = pooled(data.test_features(), data.extractor.kind)
    without_training = predict(zero_shot, frozen, data.extractor.autocast)
    scores |= figures("zero_shot", score(without_training, labels, classes))
    return scores | {"test_seconds": seconds}, predictions


def describe(cfg: DictConfig, method: Method, splits: Splits, epochs: int) -> dict:
    """What was run, in the words of results.json."""
    return {
        "task": "train",
        **describe_prompt(cfg, method, splits),
        "augmentation": cfg.augmentation,
        "features": cfg.features,
        "batch_size": cfg.batch_size,
        "precision": cfg.trainer.precision,
        "tf32": cfg.trainer.tf32,
        "chosen": method.chosen,
        "validation": cfg.validation,
        "epochs": epochs,
        "n_train": len(splits.train),
        "n_val": len(splits.val),
        "n_test": len(splits.test),
    }


def describe_prompt(cfg: DictConfig, method: Method, splits: Splits) -> dict:
    """What was learned on which data, whoever learned it (`coop.convert` knows no more)."""
    return {
        "method": cfg.method.name,
        "options": arguments(cfg.method, METHOD_KEYS),
        "backbone": method.clip.name,
        "pretrained": method.clip.pretrained,
        "dataset": cfg.dataset.name,
        "classes": cfg.dataset.classes,
        "split": splits.origin,
        "shots": cfg.shots,
        "seed": cfg.seed,
        "n_ctx": getattr(method, "n_ctx", None),
        "class_specific": getattr(method, "class_specific", None),
        "class_token_position": getattr(method, "class_token_position", None),
        "num_classes": len(splits.classnames),
        "trainable_params": method.trainable_params,
        "version": coop.__version__,
    }


def write_run(
    run_dir: Path, results: dict, method: Method, data: FewShotData, predictions: Predictions, trainer: pl.Trainer
) -> None:
    """Write what a run's folder shows of it, results.json last: its presence says that the run is finished."""
    history = next(callback for callback in trainer.callbacks if isinstance(callback, History))
    describe_run(run_dir, method, data, predictions, history)
    write_json(run_dir / RESULTS, results)
    log_results(trainer.logger, results, run_dir)


def describe_run(run_dir: Path, method: Method, data: FewShotData, predictions: Predictions, history: History) -> None:
    """Write per_class.json, history.json, words.json and the pictures of the first two."""
    from coop.evaluation.plots import draw_history, draw_per_class

    contents = per_class(predictions, data.splits.labels("test"), data.splits.classnames)
    write_json(run_dir / PER_CLASS, contents)
    draw_per_class(contents, (run_dir / PER_CLASS).with_suffix(".png"))
    history.write(run_dir)
    if history.records:
        draw_history(history.records, run_dir / "history.png")
    ctx = getattr(method, "ctx", None)
    if ctx is None:
        return
    if ctx.numel() // ctx.shape[-1] > VECTORS_COMPARED:
        log.info("the words nearest to each context vector: python -m coop.interpret run=%s", run_dir)
        return
    write_json(run_dir / WORDS, nearest_words(method))
