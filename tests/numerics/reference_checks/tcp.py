"""TCP."""

import torch.nn.functional as F

from coop.methods.base import Batch
from coop.methods.tcp import TCP
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
    words, backbone = settings["ctx_init"], clip(settings["text_layers"])
    method = TCP(
        backbone, content.get("classnames", CLASSNAMES), template=settings["teacher_template"],
        prompt_template=settings["prompt_template"], weight=settings["kg_weight"],
        layer=settings["insert_before_block"], n_ctx=None if words else settings["n_ctx"], ctx_init=words,
    )  # fmt: skip
    ours = dict(method.named_parameters())
    start(variant["learned"], {theirs: ours[name] for theirs, name in NAMES.items()})
    features = backbone.encode_image(images())
    close(features[:4], at_start["image_features_first4"], 1e-5, what="image features")
    close(method.teacher(), at_start["teacher_features"], 1e-5, what="teacher")
    (first, *_) = method.class_prompts()
    close(first.norm(dim=1), at_start["class_prompts_class0_norm_per_token"], rtol=1e-5, what="norms of class prompts")
    close(first[0, :16], at_start["class_prompts_class0_token0_first16"], 1e-5, what="class prompts")
    close(method(), at_start["text_features"], 1e-5, what="text features")
    close(method.logits(features[:4]), at_start["logits_first4"], 5e-5, what="logits")
    batches = feature_batches(method, settings)
    batch = Batch(batches[0]["label"], batches[0]["image_features"])
    loss, logits = method.loss(batch)
    loss.backward()
    close(loss, at_start["loss"], 2e-5, what="loss")
    close(F.cross_entropy(logits, batch.labels), at_start["ce"], 2e-5, what="cross-entropy")
    for theirs, name in NAMES.items():
        close_gradient(ours[name].grad, at_start["gradient"][theirs], what=theirs)
    method.zero_grad()

    optimizer = dassl(settings, name=settings["optimizer"].lower(), eps=settings["eps"], betas=settings["betas"])
    trace = train(method, batches, settings["epochs"], optimizer, folder)
    close(trace.losses, training["losses"], 2e-5, what="losses")
    close(trace.rates[:: len(batches)], training["lr"], 1e-9, what="learning rates")
    close_epochs(trace, training, NAMES)
    close(method.logits(features[:4]), training["final_logits_first4"], 5e-5, what="final logits")
