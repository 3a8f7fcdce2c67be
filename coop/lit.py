"""The one LightningModule: a method's loss, and an optimiser on the method's parameters alone."""

from collections.abc import Mapping, Sequence

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from coop.checkpoint import check_fit
from coop.clip.backbone import FrozenCLIP
from coop.errors import CoopError
from coop.methods.base import Method
from coop.schedule import learning_rate


class LitClassifier(pl.LightningModule):
    """Trains a method on batches {"label": (B), "image": (B, 3, H, W)} or {"label", "image_features": (B, E)}.

    A checkpoint holds the method and the optimiser, never the CLIP.

    Args:
        clip: the frozen CLIP.
        method: what is trained; encodes images where a batch brings no features.
        optimizer: name (sgd if not given), lr, momentum, weight_decay, eps, warmup_epochs, warmup_lr.
        epochs: T of the schedule.
    """

    def __init__(self, clip: FrozenCLIP, method: Method, optimizer: Mapping, epochs: int):
        super().__init__()
        self.strict_loading = False  # the checkpoint lacks the CLIP on purpose
        self.clip, self.method, self.optimizer_config, self.epochs = clip, method, optimizer, epochs
        self.restoring = False
        # Its checks of the values would read them back from the device in every step.
        self.val_acc = MulticlassAccuracy(len(method.classnames), average="micro", validate_args=False)

    def setup(self, stage: str) -> None:
        """Let the method see the labelled features before anything is trained, where a data module gives them."""
        if self.trainer.datamodule is not None:
            self.method.prepare(self.trainer.datamodule.labelled)

    def image_features(self, batch: Mapping[str, Tensor]) -> Tensor:
        """image_features (B, E)."""
        return batch["image_features"] if "image_features" in batch else self.method.encode_image(batch["image"])

    def training_step(self, batch: Mapping[str, Tensor], _: int) -> Tensor:
        loss, logits = self.method.loss(self.image_features(batch), batch["label"])
        # Not for Lightning's progress bar, which would read them back from the device in every step.
        self.log("train/loss", loss, on_step=True, on_epoch=False)
        accuracy = (logits.detach().argmax(dim=1) == batch["label"]).float().mean()
        self.log("train/acc", accuracy, on_step=False, on_epoch=True, sync_dist=True)
        return loss

    def on_train_epoch_end(self) -> None:
        if not all(parameter.isfinite().all() for parameter in self.method.parameters()):
            raise CoopError("the training diverged to values that are not finite; lower optimizer.lr")

    def validation_step(self, batch: Mapping[str, Tensor], _: int) -> None:
        self.val_acc(self.method.logits(self.image_features(batch)), batch["label"])
        self.log("val/acc", self.val_acc, on_step=False, on_epoch=True)

    def configure_optimizers(self):
        options = self.optimizer_config
        trained = [parameter for parameter in self.method.parameters() if parameter.requires_grad]
        if not trained:
            return None
        optimizer = build_optimizer(trained, options)
        # LambdaLR multiplies the base rate, so that the schedule stays a pure function of the epoch after a resume too.
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: self._rate(epoch) / options["lr"])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "epoch", "name": "lr"}}

    def _rate(self, epoch: int) -> float:
        options = self.optimizer_config
        return learning_rate(epoch, self.epochs, options["lr"], options["warmup_epochs"], options["warmup_lr"])

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        check_fit(_learned(self.state_dict()), checkpoint["state_dict"], self.trainer.ckpt_path)
        self.restoring = True

    def on_train_start(self) -> None:
        for optimizer in self.trainer.optimizers:
            if missing := optimizer.defaults.keys() - optimizer.param_groups[0].keys():
                raise KeyError(f"the state of another optimizer, without {min(missing)}")
        self.restoring = False

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["state_dict"] = _learned(checkpoint["state_dict"])


def _learned(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The method's part of a state: without the CLIP."""
    return {key: value for key, value in state.items() if not key.startswith("clip.")}


def build_optimizer(parameters: Sequence[nn.Parameter], options: Mapping) -> torch.optim.Optimizer:
    """SGD with momentum (CoOp, section 4.1), or AdamW for methods that are published with it."""
    if options.get("name") == "adamw":
        return torch.optim.AdamW(parameters, lr=options["lr"], weight_decay=options["weight_decay"], eps=options["eps"])
    return torch.optim.SGD(
        parameters, lr=options["lr"], momentum=options["momentum"], weight_decay=options["weight_decay"]
    )
