"""Cross-modal adaptation."""

import math
import re

import small_vit_clip as small
import torch

from coop.methods.cross_modal import CrossModal
from coop.optim.grid import Grid
from coop.optim.schedule import linear_warmup
from reference_checks.common import CLASSNAMES, clip, close, close_gradient, close_tensor, images, labels, start

NAMES = {
    "linear": {"head.weight": "weight"},
    "adapter": {"head.1.weight": "weight", "head.0.fc.0.weight": "down", "head.0.fc.2.weight": "up"},
}


def batches(settings: dict, images: int, texts: int) -> torch.Tensor:
    """Rows of each step in the file's words: so many image features in order, then texts in a stride."""
    sizes = [int(size) for size in re.findall(r"(\d+) (?:image|text)", settings["batch"])]
    counts, orders = [images, texts], [torch.arange(images), torch.arange(texts)]
    assert re.fullmatch(r"rows 0-\d+ in batches of \d+, over again", settings["image_order"])
    if stride := re.search(r"\((\d+) i\) mod", settings.get("text_order") or ""):
        orders[1] = images + int(stride[1]) * orders[1] % texts
    parts = []
    for size, count, order in zip(sizes, counts, orders, strict=False):
        whole = order[: count // size * size].view(-1, size)
        parts.append(whole.repeat(-(-settings["iterations"] // len(whole)), 1)[: settings["iterations"]])
    return torch.cat(parts, dim=1)


class Recording(Grid):
    """Keeps what a method would train on, and leaves it at its start."""

    def fit(self, tensors, scores, samples, rows, val):
        self.samples = samples
        return {}


def our_names(method: CrossModal, learned: dict) -> dict[str, str]:
    """What is learned, the authors' names to ours, in our order."""
    if method.head != "partial":
        return NAMES[method.head]
    layer = re.compile(r"image\.transformer_encoder\.\d+\.")
    ours = {name: layer.sub("image.transformer.resblocks.0.", name) for name in learned}
    ours = {name: our.replace("image.", "last.visual.").replace("head.", "") for name, our in ours.items()}
    return dict(sorted(ours.items(), key=lambda pair: method.fitted.index(pair[1])))


def check(content, variant, folder):
    settings, at_start, training = variant["settings"], variant["start"], variant["training"]
    iterations, warmup = settings["iterations"], settings["warmup_iterations"]
    method = CrossModal(
        clip(), CLASSNAMES, templates=settings["templates"],
        head="partial" if settings["image_layers_trained"] else settings["head"],
        texts=settings["modality"] == "cross_modal",
        init="zero_shot" if settings["init"] == "zeroshot" else "random", lr=[settings["lr"]], iterations=iterations,
        weight_decay=[settings["weight_decay"]], batch_size=[8], scale=math.exp(settings["logit_scale"]),
    )  # fmt: skip
    interval = int(re.search(r"iterations 0,(\d+)", settings["validation"])[1])
    method.grid = Recording([settings["lr"]], [settings["weight_decay"]], [8], iterations, warmup, interval)
    assert settings["warmup_min_lr"] == 1e-5
    names = our_names(method, variant["learned"])

    f = clip().encode_image(images(), method.feature_kind)
    val = clip().encode_image(small.drawn("val", (24, 3, 48, 48), 1.0), method.feature_kind)
    method.prepare({"train": (f[None], labels()), "val": (val[None], labels())}.__getitem__)
    samples = method.grid.samples
    texts, _, zero_shot = method.prompts.as_shots()
    state = method.state_dict()
    start(variant["learned"], {theirs: state[ours] for theirs, ours in names.items()})
    raw = method.prompts.each().transpose(0, 1).flatten(0, 1)
    close(raw.norm(dim=1), at_start["text_features"]["norms"], rtol=1e-5, what="norms of texts")
    close(raw[8, :8], at_start["text_features"]["row8_first8"], 1e-5, what="texts")
    close_tensor(zero_shot, at_start["zero_shot_weights"], 1e-6, 1e-6, "zero-shot weights")
    close(method.logits(f)[:4], at_start["logits_first4"], 5e-5, what="logits")

    rows = batches(settings, len(f), len(texts))
    first_step(method, names, samples, rows[0], at_start)
    losses, scores = [], []
    for t, (loss, models) in enumerate(method.grid.descend(method.fitted_tensors(), method.scores, samples, rows)):
        losses.append(loss.item())
        if t % interval == 0:
            right = method.scores([val], *models)[:, 0].argmax(dim=1) == labels()
            scores.append(right.float().mean().item())
    close(losses, training["losses"], 2e-5, what="losses")
    close(linear_warmup(iterations, settings["lr"], warmup), training["lr"], rtol=1e-6, what="learning rates")
    close(scores, training["val_accuracy"], 1e-6, what="validation accuracy")
    for theirs, model in zip(names, models, strict=True):
        # The keys' third of this bias has no gradient but rounding, of which Adam makes steps of size lr.
        atol, rtol = (3e-6, 1e-3) if theirs.endswith("in_proj_bias") else (3e-6, 5e-6)
        close_tensor(model[0], training["final"][theirs], atol, rtol, theirs)
    close(method.scores([f], *models)[:4, 0], training["final_logits_first4"], 5e-5, what="final logits")

    val = [val], labels()
    chosen = Grid.fit(method.grid, method.fitted_tensors(), method.scores, samples, {8: rows}, val)
    assert chosen["iteration"] == training["chosen_iteration"]
    close(method.logits(f)[:4], training["chosen_logits_first4"], 5e-5, what="chosen logits")
    method.weight = (method.weight + zero_shot) / 2
    close(method.logits(f)[:4], training["chosen_wiseft_logits_first4"], 5e-5, what="chosen WiSE-FT logits")


def first_step(method: CrossModal, names: dict, samples: tuple, rows: torch.Tensor, at_start: dict) -> None:
    """Loss and gradients before the first step."""
    x, y = samples
    models = [tensor[None].clone().requires_grad_() for tensor in method.fitted_tensors()]
    loss = torch.nn.functional.cross_entropy(method.scores(x(rows), *models)[:, 0], y[rows])
    close(loss, at_start["loss"], 2e-5, what="loss")
    for theirs, gradient in zip(names, torch.autograd.grad(loss, models), strict=True):
        close_gradient(gradient[0], at_start["gradient"][theirs], what=theirs)
