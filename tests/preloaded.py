"""What the fork server of `tests/commands.py` imports once: all that a command would, which is most of its time."""

# ruff: noqa: E402
import gc

gc.disable()  # a quarter of the time that imports take

import contextlib
import importlib
import pkgutil

import open_clip
import PIL.Image
import torch
from hydra import compose, initialize_config_dir
from hydra.core.plugins import Plugins

import coop
from coop.config import conf_dir

USED = (
    "matplotlib.backends.backend_agg",
    "networkx",  # of an ONNX export
    "onnxscript",
    "pandas",
    "pytorch_lightning",
    "sklearn.linear_model",
    "torchmetrics",
)

# Their grammars are learned while they are parsed.
WORDS = ["dataset=folder", "dataset.path=/a/b-c", "shots=4", "optimizer.lr=1e-3", "method.ctx_init='a photo of a'"]


def read_once(tokenizer: type[open_clip.SimpleTokenizer]) -> None:
    """Its vocabulary is the same each time, and a tenth of a small run's time."""
    read, made = tokenizer.__init__, {}

    def init(self, *args, **kwargs) -> None:
        key = repr((args, kwargs))
        if key not in made:
            read(self, *args, **kwargs)
            made[key] = {**vars(self)}
        vars(self).update(made[key])

    tokenizer.__init__ = init


torch.set_num_threads(1)
for name in [*USED, *(module.name for module in pkgutil.walk_packages(coop.__path__, "coop."))]:
    if not name.endswith("__main__"):
        with contextlib.suppress(ImportError):  # what needs an extra
            importlib.import_module(name)
Plugins.instance()  # Hydra looks through all that is installed
PIL.Image.init()
read_once(open_clip.SimpleTokenizer)
for length in ({}, {"context_length": 77}):
    open_clip.SimpleTokenizer(**length)
with initialize_config_dir(str(conf_dir()), version_base="1.3"):
    compose("train", WORDS, return_hydra_config=True)
    compose("evaluate", ["run=/a/b", "targets=[a,b]"], return_hydra_config=True)
gc.freeze()  # a fork that collects garbage would otherwise copy all of this
gc.enable()
