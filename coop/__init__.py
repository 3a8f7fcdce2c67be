"""coop: prompt learning on frozen CLIP models.

The names below are the stable Python API; the commands are coop.train and coop.evaluate.
"""

import importlib

from coop.system import stop

stop.while_importing()

__version__ = "0.1.0"
# Loaded on first use, so that `import coop` costs nothing and commands answer before torch is there.
_HOMES = {
    "CoopError": "coop.errors",
    "FrozenCLIP": "coop.clip.backbone",
    "Item": "coop.data.sampling",
    "PromptLearner": "coop.methods.coop",
    "Run": "coop.evaluation.finished",
    "few_shot": "coop.data.sampling",
    "learning_rate": "coop.optim.schedule",
    "load_run": "coop.evaluation.finished",
    "run": "coop.cli.in_process",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'coop' has no attribute {name!r}")
    globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
