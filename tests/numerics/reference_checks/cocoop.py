"""CoCoOp."""

from coop.methods.base import Batch
from coop.methods.cocoop import CoCoOp
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

#: The authors' names of the learned tensors, and ours.
NAMES = {"ctx": "ctx"} | {
    f"meta_net.linear{layer}.{kind}": f"meta_net.{place}.{kind}"
    for layer, place in ((1, 0), (2, 2))
    for kind in ("weight", "bias")
}


def check(content, variant, folder):
    settings, at_start, training = variant["settings"], variant["start"], variant["training"]
    words = settings["ctx_init"]
    method = CoCoOp(
        clip(), content.get("classnames", CLASSNAMES), n_ctx=None if words else settings["n_ctx"], ctx_init=words
    )
    ours = dict(method.named_parameters())
    start(variant["learned"], {theirs: ours[name] for theirs, name in NAMES.items()})
    features = clip().encode_image(images())
    close(features[:4], at_start["image_features_first4"], 1e-5, what="image features")
    moved = method.meta_net(features[:4])
    close(moved.norm(dim=1), at_start["meta_bias_first4_norm"], rtol=1e-5, what="norms of what the network gives")
    close(moved[0, :16], at_start["meta_bias_image0_first16"], 1e-5, what="what the network gives")
    close(method.text_features(features[:4])[0], at_start["text_features_image0"], 1e-5, what="text features")
    close(method.logits(features[:4]), at_start["logits_first4"], 5e-5, what="logits")
    batches = feature_batches(method, settings)
    loss, _ = method.loss(Batch(batches[0]["label"], batches[0]["image_features"]))
    loss.backward()
    close(loss, at_start["loss"], 2e-5, what="loss")
    for theirs, name in NAMES.items():
        close_gradient(ours[name].grad, at_start["gradient"][theirs], what=theirs)
    method.zero_grad()

    trace = train(method, batches, settings["epochs"], dassl(settings), folder)
    close(trace.losses, training["losses"], 2e-5, what="losses")
    close(trace.rates[:: len(batches)], training["lr"], 1e-9, what="learning rates")
    close_epochs(trace, training, NAMES)
    close(method.logits(features[:4]), training["final_logits_first4"], 5e-5, what="final logits")
