"""CLIP-Adapter."""

from coop.methods.base import Batch
from coop.methods.clip_adapter import ClipAdapter
from reference_checks.common import (
    CLASSNAMES,
    clip,
    close,
    close_gradient,
    close_tensor,
    dassl,
    feature_batches,
    images,
    start,
    train,
)  # fmt: skip

NAMES = {"fc.0.weight": "down", "fc.2.weight": "up"}


def check(content, variant, folder):
    settings, at_start, training = variant["settings"], variant["start"], variant["training"]
    (template,) = settings["templates"]
    method = ClipAdapter(
        clip(), CLASSNAMES, template=template, ratio=settings["ratio"], reduction=settings["reduction"]
    )
    start(variant["learned"], {theirs: getattr(method, ours)[0] for theirs, ours in NAMES.items()})
    features = clip().encode_image(images())
    close(method.logits(features)[:4], at_start["logits_first4"], 5e-5, what="logits")
    batches = feature_batches(method, settings)
    loss, _ = method.loss(Batch(batches[0]["label"], batches[0]["image_features"]))
    loss.backward()
    close(loss, at_start["loss"], 2e-5, what="loss")
    for theirs, ours in NAMES.items():
        close_gradient(getattr(method, ours).grad[0], at_start["gradient"][theirs], what=theirs)
    method.zero_grad()

    trace = train(method, batches, settings["epochs"], dassl(settings), folder)
    close(trace.losses, training["losses"], 2e-5, what="losses")
    close(trace.rates, training["lr"], 1e-9, what="learning rates")
    for theirs, ours in NAMES.items():
        close_tensor(getattr(method, ours)[0], training["final"][theirs], 3e-6, 5e-6, theirs)
    close(method.logits(features)[:4], training["final_logits_first4"], 5e-5, what="final logits")
