"""ProGrad."""

import torch
import torch.nn.functional as F

from coop.methods.base import Batch
from coop.methods.prograd import ProGrad
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


class Recorded(ProGrad):
    """Writes down the second loss of each step, and both of its gradients."""

    def loss(self, batch):
        loss, logits = super().loss(batch)
        distance = self._to_backward[0]
        g, h = (torch.autograd.grad(x, self.ctx, retain_graph=True)[0] for x in (loss, distance))
        self.seen.append((distance.item(), g, h))
        return loss, logits


def check(content, variant, folder):
    settings, at_start, training = variant["settings"], variant["start"], variant["training"]
    method = Recorded(
        clip(), content.get("classnames", CLASSNAMES), template=settings["template"], strength=settings["lambda_"],
        temperature=settings["T"], n_ctx=settings["n_ctx"], ctx_init=settings["ctx_init"],
        class_specific=settings["class_specific"], class_token_position=settings["class_token_position"],
    )  # fmt: skip
    method.seen = []
    start(variant["learned"], {"ctx": method.ctx})
    assert (method.ctx == 0).all(dim=-1).sum() == variant["learned"]["ctx"].get("zero_rows", 0)
    if settings["class_token_position"] == "end":
        tokens, m = at_start["first_prompt_tokens"], settings["n_ctx"]
        where = content.get("classnames", CLASSNAMES).index("water_lilly")
        ours = torch.where(method.slots[where] < 0, method.ids[where], -1)[: len(tokens)].tolist()
        assert ours == [tokens[0], *[-1] * m, *tokens[1 + m :]]

    features = clip().encode_image(images())
    close(features[:4], at_start["image_features_first4"], 1e-5, what="image features")
    close(method(), at_start["text_features"], 1e-5, what="text features")
    close(method.teacher(), at_start["zero_shot_features"], 1e-5, what="zero-shot features")
    close(method.logits(features)[:4], at_start["logits_first4"], 5e-5, what="logits")
    zero_shot = method.logits_of(features, method.teacher())
    close(zero_shot[:4], at_start["zero_shot_logits_first4"], 5e-5, what="zero-shot logits")
    batches = feature_batches(method, settings)
    batch = Batch(batches[0]["label"], batches[0]["image_features"])
    loss, logits = method.loss(batch)
    distance, g, h = method.seen.pop()
    close(loss, at_start["xe_loss"], 2e-5, what="loss")
    close(F.cross_entropy(logits, batch.labels), at_start["xe_loss"], 2e-5, what="cross-entropy")
    close(distance, at_start["kl_loss"], 2e-5, what="distance")
    close_gradient(g, at_start["gradient_xe"]["ctx"], what="the cross-entropy")
    close_gradient(h, at_start["gradient_kl"]["ctx"], what="the distance")
    method.backward(loss)
    close_gradient(method.ctx.grad, at_start["gradient_applied"]["ctx"], what="the step")
    method.zero_grad()

    trace = train(method, batches, settings["epochs"], dassl(settings), folder)
    close(trace.losses, training["xe_losses"], 2e-5, what="losses")
    close([distance for distance, _, _ in method.seen], training["kl_losses"], 2e-5, what="distances")
    cosines = [F.cosine_similarity(g.flatten(), h.flatten(), dim=0) for _, g, h in method.seen]
    close(torch.stack(cosines), training["gradient_cosines"], 1e-4, what="cosines of the gradients")
    norms = [gradients["ctx"].norm() for gradients in trace.gradients]
    close(torch.stack(norms), training["applied_grad_norms"], rtol=1e-4, what="norms of the steps' gradients")
    close(trace.rates[:: len(batches)], training["lr"], 1e-9, what="learning rates")
    close_epochs(trace, training, {"ctx": "ctx"})
    close(method.logits(features)[:4], training["final_logits_first4"], 5e-5, what="final logits")
