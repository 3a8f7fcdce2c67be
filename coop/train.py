"""python -m coop.train: few-shot training of a method on a frozen CLIP, tested with the last epoch's weights."""

import logging
import time
from pathlib import Path

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch import Tensor

import coop
from coop.clip.backbone import FrozenCLIP
from coop.config import AUTOCAST, build_method, check, launch, read_dataset, resolve_epochs
from coop.data.datamodule import FewShotData
from coop.data.features import FeatureExtractor
from coop.data.fewshot import Splits, sample
from coop.data.manifest import apply_manifest
from coop.errors import CoopError
from coop.files import write_json
from coop.lit import LitClassifier
from coop.methods import Method
from coop.methods.zero_shot import ZeroShot
from coop.results import CHECKPOINT, PROMPT, RESULTS, claim_folder, closing_table, read_results, save_prompt
from coop.scoring import features_for, score
from coop.sweep import exclusive
from coop.trainer import build_logger, build_trainer, log_results

log = logging.getLogger("coop")


def main(cfg: DictConfig) -> float | None:
    """Check the config, then run it, unless its folder already holds the result.

    Returns:
        The validation accuracy: what a sweeper may optimise.
    """
    check(cfg)
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    with exclusive(run_dir):
        claim_folder(run_dir, cfg)
        if (run_dir / RESULTS).exists():
            log.info("%s: already finished with this config, nothing is computed again", run_dir)
            results = read_results(run_dir)
        else:
            results = train(cfg, run_dir)
    if pl.utilities.rank_zero_only.rank == 0:
        show(results, run_dir)
    return results["val/acc"]


def train(cfg: DictConfig, run_dir: Path) -> dict:
    """Build, fit, test and write one run; a checkpoint in its folder is taken up.

    Returns:
        What results.json holds.

    Raises:
        CoopError: whatever the user can mend: data, weights, prompts that do not fit.
    """
    splits = sampled_splits(cfg)
    if not splits.train:
        raise CoopError(
            f"dataset={cfg.dataset.name}: has no training images; train on another, then use it with coop.evaluate"
        )
    clip = FrozenCLIP.load(**cfg.backbone)
    pl.seed_everything(cfg.seed, verbose=False)
    method = build_method(cfg.method, clip, splits.classnames)
    epochs = resolve_epochs(cfg) if method.trained_in_steps else 0

    logger = build_logger(cfg, run_dir)
    trainer = build_trainer(cfg, run_dir, epochs, logger)
    extractor = FeatureExtractor(
        clip,
        trainer.strategy.root_device,
        cfg.num_workers,
        autocast=AUTOCAST[cfg.trainer.precision],
        cached=cfg.features == "cached",
        cache_dir=cfg.cache_dir,
    )
    options = (cfg.seed, cfg.augmentation, cfg.batch_size, cfg.num_workers)
    data = FewShotData(splits, extractor, *options, with_images=method.trains_image_encoder)
    if cfg.trainer.compile:
        method.compile()
    clip.tokenize([cfg.dataset.template.format(name) for name in method.classnames])  # too long a prompt shows up here
    started = time.perf_counter()
    fit(trainer, LitClassifier(clip, method, cfg.optimizer, epochs), data, run_dir)
    method.select(data.labelled)
    timing = {"fit_seconds": time.perf_counter() - started}

    def scores_on(part: str, frozen: Tensor) -> dict[str, float]:
        return score(method, features_for(method, extractor, splits, part, frozen), splits.labels(part))

    started = time.perf_counter()
    scores = figures("test", scores_on("test", data.test_features))
    timing["test_seconds"] = time.perf_counter() - started
    scores["val/acc"] = scores_on("val", data.labelled("val")[0][0])["acc"] if splits.val else None
    zero_shot = ZeroShot(clip, splits.classnames, template=cfg.dataset.template)
    scores |= figures("zero_shot", score(zero_shot, data.test_features, splits.labels("test")))
    results = describe(cfg, method, splits, epochs) | scores | timing
    if trainer.is_global_zero:
        save_prompt(run_dir / PROMPT, method, cfg, splits.classnames)
        write_json(run_dir / RESULTS, results)  # its presence says that the run is finished
        log_results(logger, results, run_dir / PROMPT)
    return results


def fit(trainer: pl.Trainer, model: LitClassifier, data: FewShotData, run_dir: Path) -> None:
    """Train; from the checkpoint in the run's folder, if there is one.

    Raises:
        CoopError: a checkpoint that cannot be read, or a request to stop.
    """
    checkpoint = run_dir / CHECKPOINT
    resume = checkpoint if checkpoint.exists() else None
    if resume:
        try:
            torch.load(resume, weights_only=True)
        except Exception as error:  # a damaged file makes torch raise nearly anything
            raise CoopError(f"{resume}: not a readable checkpoint; delete it to start this run anew") from error
    try:
        trainer.fit(model, data, ckpt_path=resume, weights_only=True)
    except SIGTERMException:
        raise CoopError(f"stopped by SIGTERM; the same command with hydra.run.dir={run_dir} takes the run up") from None


def sampled_splits(cfg: DictConfig) -> Splits:
    """The images of a run: sampled by the protocol, or as a manifest lists them."""
    whole = read_dataset(cfg.dataset, cfg.data_root)
    if cfg.dataset.manifest:
        return apply_manifest(whole, cfg.dataset.manifest, shots=cfg.shots, classes=cfg.dataset.classes)
    return sample(whole, cfg.shots, cfg.seed, cfg.dataset.classes)


def describe(cfg: DictConfig, method: Method, splits: Splits, epochs: int) -> dict:
    """What was run, in the words of results.json."""
    return {
        "task": "train",
        "method": cfg.method.name,
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
        "augmentation": cfg.augmentation,
        "features": cfg.features,
        "batch_size": cfg.batch_size,
        "precision": cfg.trainer.precision,
        "tf32": cfg.trainer.tf32,
        "num_classes": len(splits.classnames),
        "trainable_params": method.trainable_params,
        "chosen": method.chosen,
        "epochs": epochs,
        "n_train": len(splits.train),
        "n_val": len(splits.val),
        "n_test": len(splits.test),
        "version": coop.__version__,
    }


def figures(name: str, scores: dict[str, float]) -> dict[str, float]:
    """Scores under their names in results.json: "test/acc", "test/macro_acc"."""
    return {f"{name}/{key}": value for key, value in scores.items()}


def show(results: dict, run_dir: Path) -> None:
    """The closing table: zero-shot, the method, and where everything lies."""
    title = (
        f"{results['dataset']}, {results['shots']} shots, seed {results['seed']}, {results['backbone']}: "
        f"{results['n_test']} test images of {results['num_classes']} classes (split: {results['split']}, "
        f"augmentation: {results['augmentation']}); {results['trainable_params']:,} trained parameters, "
        f"{results['epochs']} epochs, {results['fit_seconds']:.0f} s"
    )
    rows = [
        (label, {key: results[f"{name}/{key}"] for key in ("acc", "macro_acc")})
        for label, name in (("zero-shot", "zero_shot"), (results["method"], "test"))
    ]
    closing_table(title, rows, {"results": run_dir / RESULTS, "prompt": run_dir / PROMPT, "run": run_dir})


if __name__ == "__main__":
    launch(main, "train")
