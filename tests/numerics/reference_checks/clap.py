"""CLAP and ZS-LP."""

import re

import small_vit_clip as small
import torch

from coop.methods.base import Batch
from coop.methods.clap import CLAP
from reference_checks.common import (
    CLASSNAMES,
    clip,
    close,
    close_gradient,
    close_tensor,
    dassl,
    images,
    labels,
    start,
    train,
)  # fmt: skip


def options(constraint: str) -> dict:
    """Our options of the authors' string, in which they look for words."""
    kinds = {kind for kind in ("balanced", "corrected", "constant") if kind in constraint}
    if "balanced" in kinds or len(kinds) == 2:  # the mean of corrected ones is 1
        kinds = {"balanced"}
    which = [name for name in ("l2", "cosine") if name in constraint]
    return {
        "constraint": which[0] if which else "none",
        "multipliers": next(iter(kinds), "zero_shot"),
        "adaptive": "adaptative" in constraint,
    }


def order(text: str, epoch: int, total: int) -> torch.Tensor:
    """Rows of the cache in the order of an epoch: "natural", or "(i + 5 e) mod ..."."""
    if text == "natural":
        return torch.arange(total)
    step = re.search(r"\(i \+ (\d+) \*? ?e\)", text)
    assert step, text
    return (torch.arange(total) + int(step[1]) * epoch) % total


def check(content, variant, folder):
    settings, at_start, training = variant["settings"], variant["start"], variant["training"]
    views = torch.stack(
        [images() + (small.drawn(f"view.{r}", (24, 3, 48, 48), 0.1) if r else 0) for r in range(settings["views"])]
    )
    cached = torch.stack([clip().encode_image(view) for view in views])
    method = CLAP(
        clip(), CLASSNAMES, templates=settings["templates"], **options(settings["constraint"]),
        init="zero_shot" if settings["init"] == "ZS" else "random",
    )  # fmt: skip
    method.prepare(lambda part: (cached, labels()))
    begin(method, variant, settings)
    base = method.base()
    close(base.norm(dim=1), at_start["base_text_features"]["norms"], rtol=1e-5, what="norms of the base")
    close(base[8, :8], at_start["base_text_features"]["class8_first8"], 1e-5, what="underscores")
    close(method.multipliers, at_start["class_multipliers"], rtol=1e-5, what="multipliers")
    close(method.logits(cached[0])[:4], at_start["logits_first4"], 5e-5, what="logits")

    rows, size, steps = cached.flatten(0, 1), settings["batch_size"], settings["batches_per_epoch"]

    def batches(epoch: int):
        used = order(settings["order"], epoch, len(rows))[: size * steps].split(size)
        return [{"image_features": rows[i], "label": labels().repeat(settings["views"])[i]} for i in used]

    first = batches(0)[0]
    loss, logits = method.loss(Batch(first["label"], first["image_features"]))
    loss.backward()
    close(loss, at_start["loss"], 2e-5, what="loss")
    close(torch.nn.functional.cross_entropy(logits, first["label"]), at_start["loss_ce"], 2e-5, what="cross-entropy")
    close_gradient(method.prototypes.grad, at_start["gradient"]["prototypes"], what="prototypes")
    method.zero_grad()

    optimizer = dassl(settings, weight_decay=0.0)
    after = []
    on_epoch_end = method.on_epoch_end
    method.on_epoch_end = lambda *when: (on_epoch_end(*when), after.append(method.multipliers.clone()))
    trace = train(method, batches, settings["epochs"], optimizer, folder)
    close(trace.losses, training["losses"], 2e-5, what="losses")
    close(trace.rates, training["lr"], rtol=1e-6, what="learning rates")
    for ours, theirs in zip(after, training["multipliers_per_epoch"], strict=False):
        close(ours, theirs, rtol=2e-5, what="multipliers after an epoch")
    close_tensor(method.prototypes, training["final"]["prototypes"], 1e-5, 5e-6, "prototypes")
    close(method.logits(cached[0])[:4], training["final_logits_first4"], 5e-5, what="final logits")


def begin(method: CLAP, variant: dict, settings: dict) -> None:
    """The file describes the start in words: the base text features, "+ drawn(name, shape, 0.02)"."""
    (learned,) = variant["learned"].values()
    if learned["start"] == "drawn":
        start(variant["learned"], {"prototypes": method.prototypes})
        return
    assert list(method.prototypes.shape) == learned["shape"]
    if said := re.search(r"drawn\(name, shape, ([\d.]+)\)", learned["start"]):
        noise = small.drawn("prototypes", tuple(learned["shape"]), float(said[1]))
        method.prototypes.data = method.base().to(noise) + noise
