"""A run's folder. The names of what lies in it stand here: they are read without torch."""

from pathlib import Path

from coop.errors import CoopError

RESULTS, PROMPT, CONFIG, CHECKPOINT = "results.json", "prompt.safetensors", "config.yaml", "last.ckpt"
PREDICTIONS = "predictions.safetensors"  # of each test image
PER_CLASS, PER_CLASS_PICTURE = "per_class.json", "per_class.png"
HISTORY, HISTORY_PICTURE = "history.json", "history.png"
WORDS = "words.json"  # near each context vector
WEIGHTS, ONNX = "class_weights.safetensors", "model.onnx"  # of coop.export
ERROR, LOCK, LOG = "error.txt", ".lock", "log.txt"  # of a sweep
WANDB_ID = "wandb_id.txt"


def check_prompt(path: Path) -> None:
    """Raises CoopError where a run's prompt is not there."""
    if not path.is_file():
        raise CoopError(f"{path}: no such file; `run=` takes the folder of a finished run, which holds {PROMPT}")
