"""CLIP-LoRA. At the n-th dropout of a training the authors' mask is drawn from the CRC-32 of "dropout.<n>"."""

import zlib

import numpy as np
import torch
from torch import nn

from coop.methods.base import Batch
from coop.methods.clip_lora import CLIPLoRA
from reference_checks.common import CLASSNAMES, clip, close, close_gradient, close_tensor, images, labels, start, train
from reference_checks.towers import batches

OURS = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "proj": "o"}
TOKENS = {"text": 77, "image": 10}


class Detached(nn.Module):
    """With a dropout of exactly 0 the authors' code gives no gradient through a low-rank branch's input."""

    def forward(self, x):
        return x.detach()


class Mask(nn.Module):
    """The masks of one low-rank branch: the first of a step is number `first`, and a step has `total` of them."""

    def __init__(self, first: int, total: int, tokens: int, joined: bool):
        super().__init__()
        self.first, self.total, self.tokens, self.joined, self.step = first, total, tokens, joined, 0

    def forward(self, x):
        if not self.training:
            return x
        number = self.first + self.step * self.total
        self.step += 1
        batch, tokens, width = x.shape
        shape = (self.tokens * batch, width) if self.joined else (self.tokens, batch, width)
        draws = np.random.RandomState(zlib.crc32(f"dropout.{number}".encode()) & 0x7FFFFFFF).random_sample(shape)
        kept = torch.from_numpy(draws >= 0.25).reshape(self.tokens, batch, width)[:tokens].transpose(0, 1)
        return x * kept / 0.75


def with_path(method: CLIPLoRA, path: str) -> None:
    """The authors' path through dropout. The text tower comes first, then blocks in ascending order, and q, k, v, o."""
    if path == "dropout_p0":
        return
    branches = []
    for tower in ("text", "image"):
        changes = getattr(method, tower)
        for layer in changes.by_layer() if changes else ():
            branches += [(tower, name, layer[name]) for name in "qkvo" if name in layer]
    for first, (tower, name, branch) in enumerate(branches):
        masks = Mask(first, len(branches), TOKENS[tower], joined=name == "o")
        branch.dropout = masks if path == "dropout_masks" else Detached()


def check(content, variant, folder):
    settings, at_start, training = variant["settings"], variant["start"], variant["training"]
    path = settings["path"]
    assert path in ("dropout_p0", "dropout_masks") or path.startswith("literal"), path
    assert abs(settings["scaling"] - settings["alpha"] / settings["r"] ** 0.5) < 1e-6
    method = CLIPLoRA(
        clip(), CLASSNAMES, templates=settings["templates"], encoder=settings["encoder"], layers=settings["layers"],
        params=settings["params"], rank=settings["r"], alpha=settings["alpha"], dropout=0.0,
    )  # fmt: skip
    learned = {}
    for name in variant["learned"]:
        tower = method.image if name.startswith("visual.") else method.text
        *_, layer, _, projection, which = name.removeprefix("visual.").split(".")
        learned[name] = getattr(tower.changes[layer][OURS[projection]], which[-1])
    start(variant["learned"], learned)
    assert len(learned) == len(list(method.parameters()))

    first = images()[:8]
    method.train()
    with_path(method, path)
    loss, logits = method.loss(Batch(labels()[:8], method.encode_image(first)))
    loss.backward()
    close(logits[:4], at_start["logits_first4"], 1e-4, what="logits")
    close(loss, at_start["loss"], 2e-5, what="loss")
    for name, tensor in learned.items():
        close_gradient(tensor.grad, at_start["gradient"][name], what=name)
    method.zero_grad()
    with_path(method, path)  # from the first mask again

    optimizer = {
        "name": "adamw", "lr": settings["lr"], "weight_decay": 0.01, "warmup_epochs": 0, "eta_min": 1e-6, "per": "step",
    }  # fmt: skip
    trace = train(method, lambda _: batches(method), len(training["losses"]) // 3, optimizer, folder)
    close(trace.losses, training["losses"], 5e-5, what="losses")
    close(trace.rates, training["lr"], 1e-9, what="learning rates")
    for name, tensor in learned.items():
        close_tensor(tensor, training["final"][name], 1e-6, 1e-5, name)
    with torch.no_grad():
        close(method.eval().logits(method.encode_image(first[:4])), training["final_logits_first4"], 1e-4, what="final")
