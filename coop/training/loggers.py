"""Where curves and final figures go: W&B, a CSV file, or nowhere."""

import json
import logging
import os
import uuid
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger

from coop.runs import HISTORY_PICTURE, PER_CLASS, PER_CLASS_PICTURE, PROMPT, WANDB_ID, WORDS
from coop.runs.sweep import sweep_name
from coop.system.files import write_atomically

log = logging.getLogger("coop")

# How long to wait for W&B to start: not long for a server's answer; without one, as long as a busy machine takes.
ONLINE_SECONDS, OFFLINE_SECONDS = 20, 180
TAG_LENGTH = 64  # W&B takes no longer ones; a backbone's name may be a path


def build_logger(cfg: DictConfig, run_dir: Path) -> Logger | None:
    """The logger of `logger=wandb|csv|none`. W&B is offline without a key, and never stops a run."""
    if cfg.logger.kind == "none":
        return None
    if cfg.logger.kind == "csv":
        return CSVLogger(run_dir, name="csv")
    for mode in _wandb_modes():
        try:
            return _wandb_logger(cfg, run_dir, mode)
        except Exception as error:  # a dashboard is no reason to lose a run
            log.warning("W&B could not be started in mode %s (%s)", mode, error)
    return CSVLogger(run_dir, name="csv")


def _wandb_modes() -> list[str]:
    """What to try, in this order: the user's own choice, or online if there is a key; then offline."""
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    if chosen := os.environ.get("WANDB_MODE"):
        return [chosen, "offline"]
    return ["online", "offline"] if wandb.login(prompt=False, verify=False) else ["offline"]


def _wandb_logger(cfg: DictConfig, run_dir: Path, mode: str) -> Logger:
    import wandb

    seconds = ONLINE_SECONDS if mode == "online" else OFFLINE_SECONDS
    setting = f"{cfg.dataset.name}-{cfg.shots}shot-{cfg.method.name}"
    sweep = sweep_name()
    own = [cfg.dataset.name, f"{cfg.shots}shot", cfg.method.name, cfg.backbone.name, f"seed{cfg.seed}"]
    if wandb.run is not None:  # of a run of this sweep that failed; WandbLogger would log into it
        wandb.finish(exit_code=1)
    logger = WandbLogger(
        project=cfg.logger.project,
        name=run_dir.name if sweep else f"{setting}-seed{cfg.seed}",
        group=cfg.logger.group or sweep or setting,
        tags=[tag[-TAG_LENGTH:] for tag in (*own, *cfg.logger.tags)],
        save_dir=run_dir,
        id=wandb_id(run_dir),
        resume="allow",
        settings=wandb.Settings(mode=mode, console="off", init_timeout=seconds, x_service_wait=seconds),
    )
    if pl.utilities.rank_zero_only.rank == 0:
        logger.experiment.config.update(OmegaConf.to_container(cfg, resolve=True), allow_val_change=True)
    return logger


def wandb_id(run_dir: Path) -> str:
    """The id of a run's W&B run: made once and kept in its folder, so that a resumed run continues it."""
    path = run_dir / WANDB_ID
    if path.exists() and (known := path.read_text().strip()):
        return known
    made = uuid.uuid4().hex[:12]
    if pl.utilities.rank_zero_only.rank == 0:
        write_atomically(path, f"{made}\n".encode())
    return made


def log_results(logger: Logger | None, results: dict, run_dir: Path) -> None:
    """Final figures, and with W&B tables, pictures and the prompt, as far as they are in the run's folder."""
    try:
        if isinstance(logger, WandbLogger):
            _log_to_wandb(logger, results, run_dir)
        elif logger is not None:
            logger.log_metrics({key: value for key, value in _figures(results).items() if "/" in key})
            logger.save()
    except Exception as error:  # the results are on disk by now
        log.warning("the final figures could not be logged (%s)", error)


def _figures(results: dict) -> dict[str, float]:
    return {key: value for key, value in results.items() if type(value) in (int, float)}


def _log_to_wandb(logger: WandbLogger, results: dict, run_dir: Path) -> None:
    import wandb

    run = logger.experiment
    run.summary.update(_figures(results))
    shown = {f"tables/{name}": wandb.Table(*table) for name, table in result_tables(run_dir).items()}
    for path in (run_dir / HISTORY_PICTURE, run_dir / PER_CLASS_PICTURE):
        if path.exists():
            shown[f"pictures/{path.stem}"] = wandb.Image(str(path))
    run.log(shown)
    artifact = wandb.Artifact(f"prompt-{run.id}", type="prompt", metadata=json.loads(json.dumps(results)))
    artifact.add_file(str(run_dir / PROMPT))
    run.log_artifact(artifact)
    wandb.finish()


def result_tables(run_dir: Path) -> dict[str, tuple[list[str], list[list[Any]]]]:
    """(columns, rows) of the tables that a run's per_class.json and words.json hold, by name.

    per_class: accuracy of each class; confused: which class was taken for which; calibration: accuracy by confidence;
    words: the words whose embeddings are nearest to each context vector, nearest first.
    """
    per_class, words = (_read(run_dir / name) for name in (PER_CLASS, WORDS))
    records = {
        "per_class": per_class.get("classes"),
        "confused": per_class.get("confused"),
        "calibration": per_class.get("calibration", {}).get("bins"),
        "words": [
            {"classname": vector["classname"], "vector": vector["vector"], "rank": rank} | word
            for vector in words.get("vectors", [])
            for rank, word in enumerate(vector["words"], 1)
        ],
    }
    return {name: (list(rows[0]), [list(row.values()) for row in rows]) for name, rows in records.items() if rows}


def _read(path: Path) -> dict:
    return json.loads(path.read_text()) if path.exists() else {}
