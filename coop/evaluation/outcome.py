"""What a trained method achieves, and what its run's folder shows of it."""

import logging
from collections.abc import Sequence
from pathlib import Path

import pytorch_lightning as pl
from omegaconf import DictConfig

import coop
from coop.clip.handcrafted import HandCrafted
from coop.config import METHOD_KEYS, arguments
from coop.data.datamodule import FewShotData
from coop.data.sampling import Splits
from coop.evaluation.metrics import features_for, per_class, predict, score
from coop.evaluation.predictions import OOD, OWN, write_predictions
from coop.evaluation.targets import Target, base_to_new, beside_zero_shot, new_classes, ood_scores, test_targets
from coop.evaluation.words import nearest_words
from coop.methods import Method
from coop.runs import HISTORY, HISTORY_PICTURE, PER_CLASS, PER_CLASS_PICTURE, RESULTS, WORDS
from coop.system.files import write_json
from coop.system.memory import peak_mb
from coop.training.history import History
from coop.training.loggers import log_results

log = logging.getLogger("coop")

# Beyond, comparing every vector with every word takes longer than a short training.
VECTORS_COMPARED = 2000


def evaluate(
    cfg: DictConfig, method: Method, data: FewShotData, targets: Sequence[Target]
) -> tuple[dict, dict[str, dict]]:
    """What a trained method achieves on its own test and validation images and on its targets, as in results.json.

    Returns:
        The scores; and what was predicted, by test set, as `coop.evaluation.predictions` keeps it.
    """
    splits, extractor = data.splits, data.extractor
    scores, predicted, _ = beside_zero_shot(method, extractor, splits, cfg.dataset.template, data.test_features())
    scores["val/acc"], sets = None, {OWN: predicted}
    if splits.val and data.validation:
        seen = features_for(method, extractor, splits, "val", data.val_features[0])
        on_val = predict(method, seen, extractor.autocast, splits.labels("val"))
        scores["val/acc"] = score(on_val, len(splits.classnames))["acc"]
    if targets:
        frozen = {target.name: data.test_features(target.name) for target in targets}
        own = {"dataset": cfg.dataset.name, "classes": cfg.dataset.classes}
        scores["targets"], there = test_targets(method, cfg.method, targets, extractor, frozen, new_classes(own))
        sets |= there
        scores |= base_to_new(own | scores) | ood_scores(predicted, sets.get(OOD))
    return scores, sets


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
        "uses": uses(cfg, method, splits),
        "epochs": epochs,
        "n_train": len(splits.train),
        "n_val": len(splits.val),
        "n_test": len(splits.test),
    }


def cost(trainer: pl.Trainer, data: FewShotData, fit_seconds: float) -> dict:
    """Time and memory, in the words of results.json; a step's time is null where nothing is trained in steps."""
    steps = trainer.global_step - _history(trainer).first_step
    return {
        "encode_seconds": data.extractor.seconds,
        "fit_seconds": fit_seconds,
        "step_seconds": fit_seconds / steps if steps else None,
        "peak_memory_mb": peak_mb(data.extractor.device),
    }


def _history(trainer: pl.Trainer) -> History:
    return next(callback for callback in trainer.callbacks if isinstance(callback, History))


def uses(cfg: DictConfig, method: Method, splits: Splits) -> list[str]:
    """What a trained method rests on, beside a frozen CLIP, class names and the few shots."""
    hand_crafted = method.hand_crafted or any(isinstance(module, HandCrafted) for module in method.modules())
    marked = {
        "validation images": bool(cfg.validation == "choose" and splits.val and method.chosen),
        "image tower": method.needs_images,  # a changed one: each step encodes images
        "class descriptions": hand_crafted,  # hand-crafted prompts
    }
    return [name for name, used in marked.items() if used]


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
    run_dir: Path, results: dict, method: Method, data: FewShotData, sets: dict[str, dict], trainer: pl.Trainer
) -> None:
    """Write what a run's folder shows of it, results.json last: its presence says that the run is finished."""
    from coop.evaluation.plots import draw_history, draw_per_class

    write_predictions(run_dir, sets)
    classes = per_class(sets[OWN], data.splits.classnames)
    write_json(run_dir / PER_CLASS, classes)
    draw_per_class(classes, run_dir / PER_CLASS_PICTURE)
    if records := _history(trainer).records:  # none of a method that is not trained in steps
        write_json(run_dir / HISTORY, {"epochs": records})
        draw_history(records, run_dir / HISTORY_PICTURE)
    ctx = getattr(method, "ctx", None)
    if ctx is not None and ctx.numel() // ctx.shape[-1] > VECTORS_COMPARED:
        log.info("the words nearest to each context vector: python -m coop.interpret run=%s", run_dir)
    elif ctx is not None:
        write_json(run_dir / WORDS, nearest_words(method))
    write_json(run_dir / RESULTS, results)
    log_results(trainer.logger, results, run_dir)
