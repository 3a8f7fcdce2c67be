"""Cross-modal adaptation."""

import math
import re

import pytest
import small_vit_clip as small
import torch

from coop.clip.backbone import normalize
from coop.methods.cross_modal import CrossModal
from coop.optim.grid import Grid
from coop.schedule import linear_warmup
from reference_checks.common import CLASSNAMES, clip, close, close_gradient, close_tensor, images, labels, start

NAMES = {
    "linear": {"head.weight": "weight"},
    "adapter": {"head.1.weight": "weight", "head.0.fc.0.weight": "down", "head.0.fc.2.weight": "up"},
}


def batches(settings: dict, images: int, texts: int) -> torch.Tensor:
    """Rows of each step in the file's words: so many image features in order, then texts in a stride."""
    sizes = [int(size) for size in re.findall(r"(\d+) (?:image|text)", settings["batch"])]
    counts, orders = [images, texts], [torch.arange(images), torch.arange(texts)]
    if stride := re.search(r"\((\d+) i\) mod", settings["text_order"]):
        orders[1] = images + int(stride[1]) * orders[1] % texts
    parts = []
    for size, count, order in zip(sizes, counts, orders, strict=False):
        whole = order[: count // size * size].view(-1, size)
        parts.append(whole.repeat(-(-settings["iterations"] // len(whole)), 1)[: settings["iterations"]])
    return torch.cat(parts, dim=1)


class Recording(Grid):
    """Keeps the samples that a method would train on, and leaves it at its start."""

    def best(self, start, scores, samples, rows, val):
        self.samples = samples
        return start, {}


def check(content, variant, folder):
    settings, at_start, training = variant["settings"], variant["start"], variant["training"]
    if settings["image_layers_trained"]:
        pytest.skip("partial fine-tuning: this version trains no layer of the image tower")
    iterations, warmup = settings["iterations"], settings["warmup_iterations"]
    method = CrossModal(
        clip(), CLASSNAMES, templates=settings["templates"], head=settings["head"],
        texts=settings["modality"] == "cross_modal",
        init="zero_shot" if settings["init"] == "zeroshot" else "random", lr=[settings["lr"]], iterations=iterations,
        weight_decay=[settings["weight_decay"]], batch_size=[8], scale=math.exp(settings["logit_scale"]),
    )  # fmt: skip
    interval = int(re.search(r"iterations 0,(\d+)", settings["validation"])[1])
    method.grid = Recording([settings["lr"]], [settings["weight_decay"]], [8], iterations, warmup, interval)
    names = NAMES[settings["head"]]

    f, val = clip().encode_image(images()), clip().encode_image(small.drawn("val", (24, 3, 48, 48), 1.0))
    method.prepare({"train": (f[None], labels()), "val": (val[None], labels())}.__getitem__)
    x, y = method.grid.samples
    zero_shot = normalize(method.prompts.each().mean(dim=0))
    start(variant["learned"], {theirs: getattr(method, ours) for theirs, ours in names.items()})
    texts = method.prompts.each().transpose(0, 1).flatten(0, 1)
    close(texts.norm(dim=1), at_start["text_features"]["norms"], rtol=1e-5, what="norms of texts")
    close(texts[8, :8], at_start["text_features"]["row8_first8"], 1e-5, what="texts")
    close_tensor(zero_shot, at_start["zero_shot_weights"], 1e-6, 1e-6, "zero-shot weights")
    close(method.logits(f)[:4], at_start["logits_first4"], 5e-5, what="logits")

    rows = batches(settings, len(f), len(texts))
    at_first = [getattr(method, ours).clone() for ours in names.values()]
    first_step(method, names, (x[rows[0]], y[rows[0]]), at_start)
    losses, kept, scores = [], [], []
    for t, (loss, models) in enumerate(method.grid.descend(at_first, method.scores, (x, y), rows)):
        losses.append(loss.item())
        if t % interval == 0:
            kept.append([model.clone() for model in models])
            right = method.scores(val, *models)[:, 0].argmax(dim=1) == labels()
            scores.append(right.float().mean().item())
    close(losses, training["losses"], 2e-5, what="losses")
    close(linear_warmup(iterations, settings["lr"], warmup), training["lr"], rtol=1e-6, what="learning rates")
    close(scores, training["val_accuracy"], 1e-6, what="validation accuracy")
    for theirs, model in zip(names, models, strict=True):
        close_tensor(model[0], training["final"][theirs], 3e-6, 5e-6, theirs)
    close(method.scores(f, *models)[:4, 0], training["final_logits_first4"], 5e-5, what="final logits")

    best, chosen = Grid.best(method.grid, at_first, method.scores, (x, y), {8: rows}, (val, labels()))
    assert chosen["iteration"] == training["chosen_iteration"]
    for name, tensor in zip(names.values(), best, strict=True):
        setattr(method, name, tensor)
    close(method.logits(f)[:4], training["chosen_logits_first4"], 5e-5, what="chosen logits")
    method.weight = (method.weight + zero_shot) / 2
    close(method.logits(f)[:4], training["chosen_wiseft_logits_first4"], 5e-5, what="chosen WiSE-FT logits")


def first_step(method: CrossModal, names: dict, batch: tuple, at_start: dict) -> None:
    """Loss and gradients before the first step."""
    x, y = batch
    models = [getattr(method, ours)[None].clone().requires_grad_() for ours in names.values()]
    loss = torch.nn.functional.cross_entropy(method.scores(x, *models)[:, 0], y)
    close(loss, at_start["loss"], 2e-5, what="loss")
    for theirs, gradient in zip(names, torch.autograd.grad(loss, models), strict=True):
        close_gradient(gradient[0], at_start["gradient"][theirs], what=theirs)
    assert normalize(x).allclose(x, atol=1e-6)
