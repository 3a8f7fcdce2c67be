"""What happened during training, epoch by epoch: loss, accuracy, learning rate, and how far the context moved."""

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from torch import Tensor

LOGGED = ("train/loss", "train/acc", "val/acc")


class History(Callback):
    """Keeps one record per epoch; a run that is resumed goes on where its checkpoint was.

    A record holds "epoch", "lr", what of `LOGGED` there is and, for a method with context vectors `ctx` (M, D) or
    (K, M, D), "ctx_moved": the Euclidean distance of each of the M from where it started, over K the mean.
    """

    def __init__(self):
        self.records: list[dict[str, Any]] = []
        self.loss: list[Tensor] = []
        self.start: Tensor | None = None
        self.first_step = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.first_step = trainer.global_step  # of a run that is resumed, only what this process does is timed
        ctx = getattr(pl_module.method, "ctx", None)
        if self.start is None and ctx is not None:
            self.start = ctx.detach().cpu().clone()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.lr = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *_) -> None:
        self.loss.append(outputs["loss"].detach())

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        metrics = {key: trainer.callback_metrics[key].item() for key in LOGGED[1:] if key in trainer.callback_metrics}
        record = {"epoch": trainer.current_epoch + 1, "lr": self.lr}
        loss = trainer.strategy.reduce(sum(self.loss), reduce_op="sum")  # of all processes, which share each batch
        record |= {"train/loss": loss.item() / (len(self.loss) * trainer.world_size)} | metrics
        self.loss.clear()
        if self.start is not None:
            record["ctx_moved"] = moved(pl_module.method.ctx.detach().cpu(), self.start)
        self.records.append(record)

    def state_dict(self) -> dict[str, Any]:
        return {"records": self.records, "start": self.start}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.records, self.start = state_dict["records"], state_dict["start"]


def moved(ctx: Tensor, start: Tensor) -> list[float]:
    """(M) distances of context vectors (M, D) or (K, M, D) from where they started; over K the mean."""
    distances = (ctx - start).norm(dim=-1)
    return (distances.mean(dim=0) if distances.ndim == 2 else distances).tolist()
