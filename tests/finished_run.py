"""A finished run on the bundled CLIP, written without training."""

from pathlib import Path

import torch
from configs import composed
from omegaconf import OmegaConf

from coop import PromptLearner
from coop.runs.folder import CONFIG, PROMPT, RESULTS
from coop.runs.prompt import save_prompt
from coop.system.files import write_json

NAMES = ["ibis", "grey_cat", "<b>ewer</b>"]
RESULT = {
    "task": "train", "method": "coop", "backbone": "tiny", "dataset": "mini", "split": "published", "shots": 4,
    "seed": 1, "num_classes": 3, "trainable_params": 2048, "augmentation": "none", "epochs": 2, "n_test": 99,
    "fit_seconds": 1.5, "test/acc": 0.5, "test/macro_acc": 0.25, "zero_shot/acc": 0.4, "zero_shot/macro_acc": 0.375,
}  # fmt: skip


def write_run(folder: Path, clip, *overrides: str, method=PromptLearner, **options) -> Path:
    """A run on the bundled CLIP as coop.train leaves it, with what was learned drawn at random."""
    cfg = composed(*overrides)
    folder.mkdir()
    (folder / CONFIG).write_text(OmegaConf.to_yaml(cfg, resolve=True))
    torch.manual_seed(0)
    save_prompt(folder / PROMPT, method(clip, NAMES, **options), cfg, NAMES)
    write_json(folder / RESULTS, RESULT)
    return folder
