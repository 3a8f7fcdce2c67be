"""PLOT."""

import torch

from coop.clip.backbone import normalize
from coop.clip.transport import sinkhorn
from coop.methods.base import Batch
from coop.methods.plot import PLOT
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


class Recorded(PLOT):
    """Writes down how many iterations each step makes."""

    def loss(self, batch):
        self.iterations.append(plans(self, batch.image_features)[1].item())
        return super().loss(batch)


@torch.no_grad()
def plans(method, tokens):
    """Transport plans (B, K, L, N) and the number of iterations."""
    similarity = torch.einsum("ble,nke->bkln", tokens[:, 1:], normalize(method.text_features()))
    return sinkhorn(similarity, **method.transport)


def check(content, variant, folder):
    settings, at_start, training = variant["settings"], variant["start"], variant["training"]
    method = Recorded(
        clip(), content.get("classnames", CLASSNAMES), n_prompts=settings["N"], n_ctx=settings["n_ctx"],
        class_token_position=settings["class_token_position"], global_term=settings["imagenet_mode"],
        eps=settings["eps"], max_iter=settings["max_iter"], threshold=settings["threshold"],
    )  # fmt: skip
    method.iterations = []
    start(variant["learned"], {"ctx": method.ctx})
    tokens = clip().encode_image(images(), "tokens")
    close(tokens[0], at_start["image0_tokens_normalised"], 1e-5, what="image tokens")
    text_features = normalize(method())
    close(text_features[0], at_start["text_features_prompt0"], 1e-5, what="text features")
    close(text_features[-1, 0], at_start["text_features_last_prompt_row0"], 1e-5, what="text features of the last")
    for count, name in ((8, "first8"), (4, "first4_alone")):
        assert plans(method, tokens[:count])[1] == at_start[f"sinkhorn_iterations_{name}"]
        close(method.logits(tokens[:count]), at_start[f"logits_{name}"], 5e-5, what="logits")
    close(plans(method, tokens[:8])[0][0, :3], at_start["transport_plan_image0_classes0to2"], 1e-5, what="plans")
    batches = feature_batches(method, settings)
    loss, _ = method.loss(Batch(batches[0]["label"], batches[0]["image_features"]))
    loss.backward()
    close(loss, at_start["loss"], 2e-5, what="loss")
    close_gradient(method.ctx.grad, at_start["gradient"]["ctx"], what="ctx")
    method.zero_grad()
    method.iterations.clear()

    trace = train(method, batches, settings["epochs"], dassl(settings), folder)
    close(trace.losses, training["losses"], 2e-5, what="losses")
    assert method.iterations == training["sinkhorn_iterations"]
    close(trace.rates[:: len(batches)], training["lr"], 1e-9, what="learning rates")
    close_epochs(trace, training, {"ctx": "ctx"})
    close(method.logits(tokens[:8])[:4], training["final_logits_first4_of_batch8"], 5e-5, what="final logits")
