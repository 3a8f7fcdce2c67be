"""What the fork server of `tests/commands.py` imports once: all that a command would, which is most of its time."""

# ruff: noqa: E402
import gc

gc.disable()  # a quarter of the time that imports take

import contextlib
import importlib
import pkgutil

import PIL.Image
import torch
from hydra.core.plugins import Plugins

import coop

USED = (
    "matplotlib.backends.backend_agg",
    "networkx",  # of an ONNX export
    "onnxscript",
    "open_clip",
    "pandas",
    "pytorch_lightning",
    "sklearn.linear_model",
    "torchmetrics",
)

torch.set_num_threads(1)
for name in [*USED, *(module.name for module in pkgutil.walk_packages(coop.__path__, "coop."))]:
    if not name.endswith("__main__"):
        with contextlib.suppress(ImportError):  # what needs an extra
            importlib.import_module(name)
Plugins.instance()  # Hydra looks through all that is installed
PIL.Image.init()
gc.freeze()  # a fork that collects garbage would otherwise copy all of this
gc.enable()
