"""TaskRes."""

from coop.methods.base import Batch
from coop.methods.taskres import TaskRes
from reference_checks.common import (
    CLASSNAMES,
    clip,
    close,
    close_gradient,
    close_tensor,
    feature_batches,
    images,
    start,
    train,
)  # fmt: skip


def check(content, variant, folder):
    settings, training = variant["settings"], variant["training"]
    method = TaskRes(clip(), CLASSNAMES, templates=settings["templates"], alpha=settings["alpha"])
    start(variant["learned"], {"text_feature_residuals": method.residual})

    at_start = variant["start"]
    close(method.base().norm(dim=1), at_start["base_text_features"]["norms"], rtol=1e-5, what="norms of the base")
    close(method.base().flatten()[:16], at_start["base_text_features"]["first16"], 1e-5, what="base")
    close(method.base()[8, :8], at_start["base_text_features"]["class8_first8"], 1e-5, what="underscores")
    features = clip().encode_image(images())
    close(method.logits(features)[:4], at_start["logits_first4"], 5e-5, what="logits")
    batches = feature_batches(method, settings)
    loss, _ = method.loss(Batch(batches[0]["label"], batches[0]["image_features"]))
    loss.backward()
    close(loss, at_start["loss"], 2e-5, what="loss")
    close_gradient(method.residual.grad, at_start["gradient"]["text_feature_residuals"], what="residual")
    method.zero_grad()

    optimizer = {
        "name": "adam", "lr": settings["lr"], "weight_decay": 5e-4, "eps": 1e-8, "warmup_epochs": 1, "warmup_lr": 1e-5,
    }  # fmt: skip
    trace = train(method, batches, settings["epochs"], optimizer, folder)
    close(trace.losses, training["losses"], 2e-5, what="losses")
    close(trace.rates, training["lr"], 1e-9, what="learning rates")
    close_tensor(method.residual, training["final"]["text_feature_residuals"], 3e-6, 5e-6, "residual")
    close(method.logits(features)[:4], training["final_logits_first4"], 5e-5, what="final logits")
