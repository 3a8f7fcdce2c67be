"""coop: prompt learning on frozen CLIP models.

The names below are the stable Python API; the commands are coop.train and coop.evaluate.
"""

import importlib
from importlib.metadata import PackageNotFoundError, version

from coop.cli import stop

stop.while_importing()
try:
    __version__ = version("coop-clip")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "unknown"

# Loaded on first use: a command's config is checked before torch and open_clip are imported.
_HOMES = {
    "CoopError": "coop.errors",
    "FrozenCLIP": "coop.clip.backbone",
    "Item": "coop.data.fewshot",
    "PromptLearner": "coop.methods.coop",
    "few_shot": "coop.data.fewshot",
    "learning_rate": "coop.schedule",
}
__all__ = ["CoopError", "FrozenCLIP", "Item", "PromptLearner", "__version__", "few_shot", "learning_rate"]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'coop' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
