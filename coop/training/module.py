"""The one LightningModule: a method's loss, and an optimizer on the method's parameters alone."""

from collections.abc import Mapping

import pytorch_lightning as pl
import torch
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy

from coop.errors import CoopError
from coop.methods.base import Batch, Method
from coop.optim.optimizers import build_optimizer, build_schedule
from coop.runs.checkpoint import check_fit


class LitClassifier(pl.LightningModule):
    """Trains a method on batches {"label": (B)} with "image" (B, 3, H, W), "image_features", or both.

    A checkpoint holds the method and the optimizer, never the CLIP.

    Args:
        method: what is trained; encodes images where a batch brings no features, or where it needs images.
        optimizer: the config's node `optimizer`.
        epochs: T of the schedule.
    """

    def __init__(self, method: Method, optimizer: Mapping, epochs: int):
        super().__init__()
        self.strict_loading = False  # the checkpoint lacks the CLIP on purpose
        # The CLIP is here so that it moves to the device too: the method keeps it out of its state.
        self.clip, self.method, self.optimizer_config, self.epochs = method.clip, method, optimizer, epochs
        self.restoring, self.steps = False, 1
        # Its checks of the values would read them back from the device in every step.
        self.val_acc = MulticlassAccuracy(len(method.classnames), average="micro", validate_args=False)

    def setup(self, stage: str) -> None:
        """Let the method see the labeled features before anything is trained, where a data module gives them."""
        if self.trainer.datamodule is not None:
            self.to(self.trainer.strategy.root_device)  # Lightning would do it a moment later; some methods train here
            self.method.prepare(self.trainer.datamodule.labeled)

    def image_features(self, batch: Mapping[str, Tensor]) -> Tensor:
        """image_features (B, E), or as the method's `feature_kind` says."""
        if self.method.needs_images or "image_features" not in batch:
            return self.method.encode_image(batch["image"])
        return batch["image_features"]

    def training_step(self, batch: Mapping[str, Tensor], _: int) -> Tensor:
        loss, logits = self.method.loss(self._seen(batch))
        # Not for Lightning's progress bar, which would read them back from the device in every step.
        self.log("train/loss", loss, on_step=True, on_epoch=False)
        accuracy = (logits.detach().argmax(dim=1) == batch["label"]).float().mean()
        self.log("train/acc", accuracy, on_step=False, on_epoch=True, sync_dist=True)
        return loss

    def _seen(self, batch: Mapping[str, Tensor]) -> Batch:
        teacher = None
        if self.method.needs_teacher:  # with fixed views they were encoded once
            teacher = batch["image_features"] if "image_features" in batch else self.clip.encode_image(batch["image"])
        images = batch["image"] if self.method.needs_images else None
        epoch, step = (self.trainer.current_epoch, self.trainer.global_step) if self._trainer is not None else (0, 0)
        features = self.image_features(batch)
        return Batch(batch["label"], features, images, teacher, epoch, self.epochs, step, self.steps)

    def backward(self, loss: Tensor) -> None:
        self.method.backward(loss)

    def on_train_epoch_end(self) -> None:
        if not all(parameter.isfinite().all() for parameter in self.method.parameters()):
            raise CoopError("the training diverged to values that are not finite; lower optimizer.lr")
        self.method.on_epoch_end(self.trainer.current_epoch, self.epochs)

    def validation_step(self, batch: Mapping[str, Tensor], _: int) -> None:
        parts = self.image_features(batch).split(self.method.images_at_once)
        self.val_acc(torch.cat([self.method.logits(part) for part in parts]), batch["label"])
        self.log("val/acc", self.val_acc, on_step=False, on_epoch=True)

    def configure_optimizers(self):
        if not self.method.trained_in_steps:
            return None
        optimizer = build_optimizer(self.method.parameter_groups(self.optimizer_config), self.optimizer_config)
        per = self.optimizer_config.get("per", "epoch")
        total = self.epochs if per == "epoch" else self.trainer.estimated_stepping_batches
        schedule = build_schedule(optimizer, self.optimizer_config, total)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": per, "name": "lr"}}

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        check_fit(_learned(self.state_dict()), checkpoint["state_dict"], self.trainer.ckpt_path)
        self.restoring = True

    def on_train_start(self) -> None:
        self.steps = self.trainer.estimated_stepping_batches
        for optimizer in self.trainer.optimizers:
            if missing := optimizer.defaults.keys() - optimizer.param_groups[0].keys():
                raise KeyError(f"the state of another optimizer, without {min(missing)}")
        self.restoring = False

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["state_dict"] = _learned(checkpoint["state_dict"])


def _learned(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The method's part of a state: without the CLIP."""
    return {key: value for key, value in state.items() if not key.startswith("clip.")}
