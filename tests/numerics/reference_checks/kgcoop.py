"""KgCoOp."""

import torch.nn.functional as F

from coop.methods.base import Batch
from coop.methods.kgcoop import KgCoOp
from reference_checks.common import (
    CLASSNAMES,
    clip,
    close,
    close_epochs,
    close_gradient,
    dassl,
    feature_batches,
    images,
    start,
    train,
)  # fmt: skip


def check(content, variant, folder):
    settings, at_start, training = variant["settings"], variant["start"], variant["training"]
    words = settings["ctx_init"]
    method = KgCoOp(
        clip(), content.get("classnames", CLASSNAMES), template=settings["template"], weight=settings["w"],
        n_ctx=None if words else settings["n_ctx"], ctx_init=words, class_specific=settings["class_specific"],
    )  # fmt: skip
    start(variant["learned"], {"ctx": method.ctx})
    features = clip().encode_image(images())
    close(features[:4], at_start["image_features_first4"], 1e-5, what="image features")
    close(method(), at_start["text_features"], 1e-5, what="text features")
    close(method.teacher(), at_start["teacher_features"], 1e-5, what="teacher")
    close(method.logits(features)[:4], at_start["logits_first4"], 5e-5, what="logits")
    batches = feature_batches(method, settings)
    batch = Batch(batches[0]["label"], batches[0]["image_features"])
    loss, logits = method.loss(batch)
    loss.backward()
    close(loss, at_start["loss"], 2e-5, what="loss")
    close(F.cross_entropy(logits, batch.labels), at_start["ce"], 2e-5, what="cross-entropy")
    close_gradient(method.ctx.grad, at_start["gradient"]["ctx"], what="ctx")
    method.zero_grad()

    trace = train(method, batches, settings["epochs"], dassl(settings), folder)
    close(trace.losses, training["losses"], 2e-5, what="losses")
    close(trace.rates[:: len(batches)], training["lr"], 1e-9, what="learning rates")
    close_epochs(trace, training, {"ctx": "ctx"})
    close(method.logits(features)[:4], training["final_logits_first4"], 5e-5, what="final logits")
