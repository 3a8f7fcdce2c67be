"""A whole training step of each text prompt method, ours against the same method on a plain text encoder.

    python benchmarks/method_steps.py                    all methods, 100 classes, some fifteen minutes on one CPU core
    python benchmarks/method_steps.py --rows cocoop_1    one of them

A step is the loss of the method on a batch of image features and its backward pass: teachers, small networks, optimal
transport and surgery of gradients included. The plain encoder runs all 77 tokens of every prompt, as the authors' code
does. Of several contexts it is given one, and its time is multiplied: all at once it is no faster and needs 14 GB. The
text encoder is that of ViT-B/16, randomly initialized. Steps of either kind in turn, one thread, medians, CPU time of
this process (see `text_encoder.py`).
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "0")

import torch
import torch.nn.functional as F
from text_encoder import JOINT, OthersLoad, classnames, load_clip, processor, write
from torch import Tensor, nn

from coop import FrozenCLIP, PromptLearner
from coop.methods.base import Batch
from coop.methods.cocoop import CoCoOp
from coop.methods.kgcoop import KgCoOp
from coop.methods.plot import PLOT
from coop.methods.prograd import ProGrad
from coop.methods.tcp import TCP

TEMPLATE = {"template": "a photo of a {}."}
ROWS = {  # class, options, images, places of each image, contexts that the plain encoder is given one of
    "coop": (PromptLearner, {"n_ctx": 16}, 32, 0, 1),
    "kgcoop": (KgCoOp, {"n_ctx": 4, **TEMPLATE}, 128, 0, 1),
    "prograd": (ProGrad, {"n_ctx": 16, **TEMPLATE}, 32, 0, 1),
    "cocoop_1": (CoCoOp, {"n_ctx": 4}, 1, 0, 1),
    "cocoop_4": (CoCoOp, {"n_ctx": 4}, 4, 0, 4),
    "tcp": (TCP, {"n_ctx": 4, "layer": 8, **TEMPLATE}, 32, 0, 1),
    "plot_4": (PLOT, {"n_ctx": 16, "n_prompts": 4}, 32, 49, 4),
}


class PlainEncoder(nn.Module):
    """Every prompt, all 77 tokens; called as the method's own encoder, with one context."""

    def __init__(self, method: PromptLearner):
        super().__init__()
        self.model, self.ids, self.positions = (method.clip.model,), method.ids, method.slots[0] >= 0

    def forward(self, ctx: Tensor, deep=None, normalize: bool = True) -> Tensor:
        (model,) = self.model
        x = model.token_embedding(self.ids)
        x[:, self.positions] = ctx.reshape(-1, *ctx.shape[-2:])[0]
        x = x + model.positional_embedding
        for layer, block in enumerate(model.transformer.resblocks):
            if deep and layer in deep:
                x = x.clone()
                x[:, self.positions] = deep[layer]
            x = block(x, attn_mask=model.attn_mask)
        x = model.ln_final(x)[torch.arange(len(x)), self.ids.argmax(1)] @ model.text_projection
        x = F.normalize(x, dim=-1) if normalize else x
        return x.expand(*ctx.shape[:-2], *x.shape)


class Step:
    """One row's steps."""

    def __init__(self, clip: FrozenCLIP, classes: int, row: str):
        kind, options, images, places, self.contexts = ROWS[row]
        torch.manual_seed(0)
        self.method = kind(clip, classnames(classes), **options)
        self.encoders = {False: self.method.encoder, True: PlainEncoder(self.method)}
        shape = (images, 1 + places, JOINT) if places else (images, JOINT)
        self.batch = Batch(torch.arange(images) % classes, F.normalize(torch.randn(shape), dim=-1))
        # The plain way's one context: CoCoOp's is that of one image.
        of_one = isinstance(self.method, CoCoOp)
        self.batch_of_one = Batch(self.batch.labels[:1], self.batch.image_features[:1]) if of_one else self.batch

    def __call__(self, plain: bool) -> float:
        """Seconds."""
        self.method.__dict__["encoder"] = self.encoders[plain]  # in place of the cached property
        self.method.zero_grad()
        began = time.process_time()
        loss, _ = self.method.loss(self.batch_of_one if plain else self.batch)
        self.method.backward(loss)
        return (time.process_time() - began) * (self.contexts if plain else 1)


def markdown(results: dict) -> str:
    """The table."""
    lines = [
        f"{results['machine']}. CPUs kept busy by other processes: {results['others_load']:.1f}.",
        "",
        "| method | K | plain s | ours s | times |",
        "|---|---|---|---|---|",
    ]
    for r in results["rows"]:
        lines.append(
            f"| {r['row']} | {r['classes']} | {r['plain']:.2f} | {r['ours']:.3f} | {r['plain'] / r['ours']:.1f} |"
        )
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out")
    args = parser.parse_args()
    torch.set_num_threads(1)
    clip, load = load_clip(), OthersLoad()
    steps = {row: Step(clip, args.classes, row) for row in args.rows}
    seconds = {row: {False: [], True: []} for row in steps}
    for repeat in range(args.repeats):
        for row, step in steps.items():
            seconds[row][True].append(step(plain=True))
            step(plain=False)
            seconds[row][False].append(step(plain=False))
            print(
                f"{repeat + 1}: {row}: {seconds[row][False][-1]:.3f} s, plain {seconds[row][True][-1]:.1f} s",
                flush=True,
            )
    rows = [
        {"row": row, "classes": args.classes, "ours": statistics.median(s[False]), "plain": statistics.median(s[True]),
         "all_ours": s[False], "all_plain": s[True]}
        for row, s in seconds.items()
    ]  # fmt: skip
    results = {"machine": processor(), "others_load": load(), "rows": rows}
    args.out.mkdir(parents=True, exist_ok=True)
    write(args.out / "method_steps.json", json.dumps(results, indent=1))
    write(args.out / "method_steps.md", markdown(results))
    print(markdown(results))


if __name__ == "__main__":
    main()
