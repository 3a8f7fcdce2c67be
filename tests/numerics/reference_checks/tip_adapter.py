"""Tip-Adapter and Tip-Adapter-F."""

import small_vit_clip as small
import torch

from coop.methods.base import Batch
from coop.methods.tip_adapter import TipAdapter
from reference_checks.common import (
    CLASSNAMES,
    clip,
    close,
    close_gradient,
    close_tensor,
    feature_batches,
    images,
    labels,
    train,
)  # fmt: skip


def made(settings: dict, train_keys: bool) -> TipAdapter:
    assert settings["search_step_beta_alpha"] == [200, 20]
    beta_max, alpha_max = settings["search_scale_beta_alpha"]
    return TipAdapter(
        clip(), CLASSNAMES, templates=settings["templates"], train_keys=train_keys, alpha=settings["alpha"],
        beta=settings["beta"], alpha_max=alpha_max, beta_max=beta_max, scale=100.0,
    )  # fmt: skip


def check(content, variant, folder):
    settings, at_start, training = variant["settings"], variant["start"], variant["training"]
    views = [images() + (small.drawn(f"view.{r}", (24, 3, 48, 48), 0.1) if r else 0) for r in range(settings["views"])]
    raw = torch.stack([clip().encode_image(view, "raw") for view in views])
    val = clip().encode_image(small.drawn("val", (24, 3, 48, 48), 1.0), "raw")[None]
    labeled = {"train": (raw, labels()), "val": (val, labels())}.__getitem__

    tip = made(settings, train_keys=False)
    tip.prepare(labeled)
    tip.select(labeled)
    beta, alpha = training["search_tip_beta_alpha"]
    close([tip.chosen["beta"], tip.chosen["alpha"]], [beta, alpha], 1e-4, what="beta, alpha")

    method = made(settings, train_keys=True)
    method.prepare(labeled)
    assert list(method.keys.shape) == variant["learned"]["keys"]["shape"]
    close_tensor(method.keys, at_start["keys_start"], 3e-6, 5e-6, "keys at the start")
    close(method.logits(raw[0])[:4], at_start["logits_first4"], 5e-5, what="logits")
    _, votes = method._sides(raw[0][:4])
    close(votes(method.beta), at_start["cache_votes_first4"], 1e-5, what="votes")
    batches = feature_batches(method, settings)
    batch = Batch(batches[0]["label"], batches[0]["image_features"])
    loss, logits = method.loss(batch)
    loss.backward()
    close(logits[:4], at_start["first_batch_logits_first4"], 5e-5, what="logits of the first batch")
    close(loss, at_start["loss"], 2e-5, what="loss")
    close_gradient(method.keys.grad, at_start["gradient"]["keys"], what="keys")
    method.zero_grad()

    optimizer = {
        "name": "adamw", "lr": settings["lr"], "weight_decay": 0.01, "eps": 1e-4, "warmup_epochs": 0, "per": "step",
    }  # fmt: skip
    trace = train(method, batches, settings["epochs"], optimizer, folder)
    close(trace.losses, training["losses"], 2e-5, what="losses")
    close(trace.rates, training["lr"], rtol=1e-6, what="learning rates")
    close_tensor(method.keys, training["final"]["keys"], 3e-6, 5e-6, "keys")
    close(method.logits(raw[0])[:4], training["final_logits_first4"], 5e-5, what="final logits")
    method.select(labeled)
    beta, alpha = training["search_tip_f_last_epoch_beta_alpha"]
    close([method.chosen["beta"], method.chosen["alpha"]], [beta, alpha], 1e-4, what="beta, alpha of the last epoch")
