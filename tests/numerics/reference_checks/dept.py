"""DePT on CoOp. The authors' scales and shifts are our (2, E) tensors' rows."""

import torch

from coop.clip.backbone import normalize
from coop.methods.base import Batch
from coop.methods.dept import DePT
from reference_checks.common import (  # fmt: skip
    CLASSNAMES,
    clip,
    close,
    close_gradient,
    close_tensor,
    dassl,
    feature_batches,
    images,
    small,
    train,
)


def tensors(method, film_of):
    """Ours by the authors' names; `film_of` gives a parameter or its gradient."""
    found = {"prompt_learner.ctx": film_of(method.ctx)}
    for side, film in (("img", method.image_film), ("text", method.text_film)):
        found |= {f"film_lp_{side}.scale": film_of(film)[0], f"film_lp_{side}.bias": film_of(film)[1]}
    return found | {"linear_probe_proj.weight": film_of(method.weight), "linear_probe_proj.bias": film_of(method.bias)}


def check(content, variant, folder):
    settings, at_start, training = variant["settings"], variant["start"], variant["training"]
    options = {
        "head_weight": settings["linear_probe_weight"],
        "head_lr": settings["lr_of_film_and_linear"] / settings["lr"],
    }
    words = settings["ctx_init"]
    method = DePT(clip(), CLASSNAMES, n_ctx=None if words else settings["n_ctx"], ctx_init=words or None, **options)
    if not settings["film"]:  # scales of one and shifts of zero stay
        method.text_film.requires_grad_(False)
        method.image_film.requires_grad_(False)
    learned = {name for name in tensors(method, lambda p: p) if settings["film"] or not name.startswith("film")}
    assert variant["learned"].keys() == learned
    with torch.no_grad():
        for name in learned:
            tensor = tensors(method, lambda p: p.data)[name]
            entry = variant["learned"][name]
            if entry["start"] == "words":
                continue
            drawn = small.drawn(entry.get("key", name), tuple(entry["shape"]), entry.get("std", 0.02))
            tensor.copy_(drawn + 1 if entry["start"].startswith("1 +") else drawn)

    features = clip().encode_image(images(), "raw")
    close(method(), at_start["text_features"], 1e-5, what="text features")
    close(normalize(features)[:4], at_start["image_features_first4"], 1e-5, what="image features")
    close(features[:4].norm(dim=1), at_start["image_norms_first4"], rtol=1e-5, what="norms")
    method.eval()
    with torch.no_grad():
        close(method.logits(features)[:4], at_start["logits_fused_first4"], 1e-4, what="fused logits")
        method.same_classes = False
        close(method.logits(features)[:4], at_start["logits_similarity_first4"], 1e-4, what="similarities")
        method.same_classes = True
    method.train()
    batches = feature_batches(method, settings)
    loss, _ = method.loss(Batch(batches[0]["label"], batches[0]["image_features"]))
    loss.backward()
    close(loss, at_start["loss"], 1e-5, what="loss")
    for name in learned:
        gradient = tensors(method, lambda p: p.grad if p.grad is not None else p)[name]
        close_gradient(gradient, at_start["gradient"][name], what=name)
    method.zero_grad()

    rates = training["lr_of_ctx_and_of_new_layers"]
    trace = train(method, batches, len(rates), dassl(settings), folder)
    close(trace.losses, training["losses"], 1e-4, what="losses")
    close(trace.rates[::3], [rate[0] for rate in rates], 1e-9, what="learning rates")
    for name in learned:
        close_tensor(tensors(method, lambda p: p.data)[name], training["final"][name], 1e-5, 1e-4, name)
    close(method.eval().logits(features)[:4], training["final_logits_fused_first4"], 1e-4, what="final logits")
