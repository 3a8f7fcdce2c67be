"""What the files of all methods have in common: the small ViT CLIP, images, batches, how learned tensors start."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import small_vit_clip as small
import torch
from small_clip import tokenizer
from torch import Tensor
from torch.utils.data import DataLoader

from coop import FrozenCLIP
from coop.methods import Method
from coop.training.module import LitClassifier

CLASSNAMES = small.CLASSNAMES
#: Dassl's protocol, unless a file says otherwise.
SGD = {"name": "sgd", "lr": 0.002, "momentum": 0.9, "weight_decay": 5e-4, "warmup_epochs": 1, "warmup_lr": 1e-5}


@functools.cache
def clip(text_layers: int = small.TEXT["layers"], vision_width: int = small.VISION["width"]) -> FrozenCLIP:
    """Built once; a method that changed it would be seen by all that come after.

    Args:
        text_layers: depth of the text tower, by the same rule of weights.
        vision_width: V, of the image tower, by the same rule.
    """
    return FrozenCLIP(small.small_vit_clip(text_layers, vision_width), tokenizer(), name="small_vit")


def images(count: int = 24) -> Tensor:
    return small.images(count)


def labels(count: int = 24) -> Tensor:
    return torch.arange(count) % 12


def start(learned: Mapping[str, Any], parameters: Mapping[str, Tensor]) -> None:
    """Set parameters that start from `drawn`; others have the start of the method's own.

    Args:
        learned: the file's `learned`.
        parameters: ours, by the authors' names.
    """
    assert learned.keys() == parameters.keys()
    for name, entry in learned.items():
        assert list(parameters[name].shape) == entry["shape"], name
        if entry["start"] == "drawn":
            with torch.no_grad():
                parameters[name].copy_(small.drawn(entry["key"], tuple(entry["shape"]), entry["std"]))


def close(ours: Tensor | Sequence | float, theirs: Any, atol: float = 0.0, rtol: float = 0.0, what: str = "") -> None:
    """The largest deviation within atol + rtol * the largest of theirs."""
    ours, theirs = (torch.as_tensor(x).detach().double() for x in (ours, theirs))
    assert ours.shape == theirs.shape, f"{what}: {tuple(ours.shape)}, expected {tuple(theirs.shape)}"
    worst, bound = (ours - theirs).abs().max().item(), atol + rtol * theirs.abs().max().item()
    assert worst <= bound, f"{what}: off by {worst:.3g}, allowed {bound:.3g}"


def close_tensor(ours: Tensor, theirs: Mapping[str, Any], atol: float, rtol: float, what: str = "") -> None:
    """A tensor against its norm (to rtol) and its first 16 entries, row-major (to atol)."""
    close(ours.norm(), theirs["norm"], rtol=rtol, atol=1e-12, what=f"norm of {what}")
    close(ours.flatten()[:16], theirs["first16"], atol=atol, what=what)


def close_gradient(ours: Tensor, theirs: Mapping[str, Any], rtol: float = 1e-4, what: str = "") -> None:
    """A gradient against norm and first 16 entries, relative to the norm and to the largest of these entries."""
    close(ours.norm(), theirs["norm"], rtol=rtol, what=f"norm of the gradient of {what}")
    close(ours.flatten()[:16], theirs["first16"], rtol=rtol, what=f"gradient of {what}")


@dataclass
class Trace(pl.Callback):
    """What happened in training: the loss before each step, its learning rate, the parameters after each epoch."""

    losses: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    gradients: list[dict[str, Tensor]] = field(default_factory=list)
    after_epochs: list[dict[str, Tensor]] = field(default_factory=list)

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.rates.append(optimizer.param_groups[0]["lr"])
        named = module.method.named_parameters()
        self.gradients.append({name: p.grad.clone() for name, p in named if p.grad is not None})

    def on_train_batch_end(self, trainer, module, outputs, *_):
        self.losses.append(outputs["loss"].item())

    def on_train_epoch_end(self, trainer, module):
        self.after_epochs.append({name: p.detach().clone() for name, p in module.method.named_parameters()})


class Settings(dict):
    """A file's settings; remembers which of them a check has read."""

    def __init__(self, settings: Mapping[str, Any]):
        super().__init__(settings)
        self.read: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.read.add(key)
        return super().get(key, default)

    def unread(self) -> dict[str, Any]:
        """What had no part in a check: descriptions, or a setting that it does not know."""
        return {key: value for key, value in self.items() if key not in self.read}


Batches = Iterable[dict[str, Tensor]]


def train(method: Method, batches: Batches | Callable[[int], Batches], epochs: int, optimizer: Mapping, folder: Path):
    """Train through Lightning's own loop and the project's one module.

    Args:
        method: at its start.
        batches: of each epoch, or of epoch e as a function of e.
        epochs: T.
        optimizer: a config's node `optimizer`.
        folder: for Lightning.

    Returns:
        The trace.
    """
    trace = Trace()
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=epochs, logger=False, callbacks=[trace], enable_progress_bar=False,
        enable_checkpointing=False, enable_model_summary=False, default_root_dir=folder, log_every_n_steps=1,
        reload_dataloaders_every_n_epochs=1,
    )  # fmt: skip
    module = LitClassifier(method, optimizer, epochs)
    of_epoch = batches if callable(batches) else lambda _: batches
    module.train_dataloader = lambda: DataLoader(list(of_epoch(trainer.current_epoch)), batch_size=None)
    trainer.fit(module)
    return trace


def feature_batches(method: Method, settings: Mapping[str, Any]) -> list[dict[str, Tensor]]:
    """Batches of frozen features, in order: batch i of an epoch is images [i * B, (i + 1) * B)."""
    size = settings.get("batch_size", 8)
    count = size * settings.get("batches_per_epoch", 3)
    features = method.clip.encode_image(images(count), method.feature_kind)
    pairs = zip(features.split(size), labels(count).split(size), strict=True)
    return [{"image_features": x, "label": y} for x, y in pairs]


def dassl(settings: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """The node `optimizer` of the protocol of Dassl, with what the file says."""
    return SGD | {key: settings[key] for key in SGD.keys() & settings.keys()} | changes


def close_epochs(trace: Trace, training: Mapping[str, Any], names: Mapping[str, str]) -> None:
    """Learned tensors after each epoch and at the end: first entries to 3e-6, norms to 5e-6 of theirs.

    Args:
        trace: ours.
        training: the file's `training`.
        names: of the tensors, the authors' name to ours.
    """
    after = {int(key.rpartition("_")[2]): value for key, value in training.get("after_epochs", {}).items()}
    after[len(trace.after_epochs)] = training["final"]
    for epoch, tensors in after.items():
        for theirs, ours in names.items():
            what = f"{theirs} after epoch {epoch}"
            close_tensor(trace.after_epochs[epoch - 1][ours], tensors[theirs], 3e-6, 5e-6, what)
