"""coop: prompt learning on frozen CLIP models.

The names below are the stable Python API; the commands are coop.train and coop.evaluate.
"""

import importlib

from coop.system import stop

stop.while_importing()

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
__all__ = [
    "CoopError",
    "FrozenCLIP",
    "Item",
    "PromptLearner",
    "Run",
    "__version__",
    "few_shot",
    "learning_rate",
    "load_run",
    "run",
]


def __getattr__(name: str):
    if name == "__version__":
        globals()[name] = _version()
    elif name in _HOMES:
        globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module 'coop' has no attribute {name!r}")
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("coop-clip")
    except PackageNotFoundError:  # a checkout that was never installed
        return "unknown"
