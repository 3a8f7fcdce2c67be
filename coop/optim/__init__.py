"""Optimizers and searches over their settings; the defaults stand here, where a config is checked without torch."""

from typing import Any

#: The keys of the config's node `optimizer` besides the arguments of a `_target_`, and their values if not given.
DEFAULTS: dict[str, Any] = {
    "name": "sgd",
    "lr": 0.002,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "eps": 1e-8,
    "warmup_epochs": 1,
    "warmup_lr": 1e-5,
    "schedule": "cosine",
    "eta_min": 0.0,
    "per": "epoch",
}
