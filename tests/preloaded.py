"""What the fork server of `tests/commands.py` imports once: all that a command would import, which is most of its time."""

import contextlib
import gc
import importlib
import pkgutil

import matplotlib.backends.backend_agg
import open_clip
import pandas
import PIL.Image
import pytorch_lightning
import sklearn.linear_model
import torch
import torchmetrics.functional.classification  # noqa: F401
from hydra.core.plugins import Plugins

import coop

torch.set_num_threads(1)
for module in pkgutil.walk_packages(coop.__path__, "coop."):
    if not module.name.endswith("__main__"):
        with contextlib.suppress(ImportError):  # of an extra
            importlib.import_module(module.name)
Plugins.instance()  # Hydra looks through all that is installed
PIL.Image.init()
gc.collect()
gc.freeze()  # a fork that collects garbage would otherwise copy all of this
