"""The text encoder's part of a training step of the field's methods, ours against the plain way: time and memory.

    python benchmarks/text_encoder_methods.py                  all rows, 100 classes, some ten minutes on one CPU core
    python benchmarks/text_encoder_methods.py --rows cocoop_1  one of them
    python benchmarks/text_encoder_methods.py --memory         peak memory of CoCoOp's step with 1000 classes instead

A step is the text features of all classes and their gradient in everything learned. The text encoder is that of
ViT-B/16 (width 512, 12 layers, 8 heads), randomly initialized; class names are open_clip's ImageNet names. The plain
way runs all 77 tokens of every prompt, as the authors' code does. Steps of either kind in turn, one thread, medians.
Of several contexts the plain way is measured with one and multiplied: all at once it is no faster and needs 14 GB.
Clock: CPU time of this process (see `text_encoder.py`).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "0")

import torch
from text_encoder import JOINT, WIDTH, OthersLoad, classnames, load_clip, processor, step_memory, write
from torch import Tensor

from coop import FrozenCLIP

LAYERS = range(1, 9)  # nine depths, the context's included
ROWS = {  # words, context vectors, contexts, deep prompts {layer: of each class's own}
    "coop": ("X X X X", 4, (), {}),
    "cocoop_1": ("a photo of a", 4, (1,), {}),
    "cocoop_4": ("a photo of a", 4, (4,), {}),
    "plot_4": ("X X X X", 4, (4,), {}),
    "maple_9": ("a photo of a", 2, (), dict.fromkeys(LAYERS, False)),
    "tcp": ("X X X X", 4, (), {8: True}),
}


class Step:
    """One row's step, ours or plain."""

    def __init__(self, clip: FrozenCLIP, classes: int, row: str, **options):
        words, n_ctx, contexts, deep = ROWS[row]
        self.clip = clip
        self.ids = clip.tokenize([f"{words} {name}." for name in classnames(classes)])
        self.slots = torch.full_like(self.ids, -1)
        self.slots[:, 1 : 1 + n_ctx] = torch.arange(n_ctx)
        self.encoder = clip.prompt_encoder(self.ids, self.slots, **options)
        torch.manual_seed(0)
        self.ctx = (0.02 * torch.randn(*contexts, n_ctx, WIDTH)).requires_grad_()
        shapes = {layer: (classes, n_ctx, WIDTH) if own else (n_ctx, WIDTH) for layer, own in deep.items()}
        self.deep = {layer: (0.02 * torch.randn(shape)).requires_grad_() for layer, shape in shapes.items()}
        self.target = torch.randn(classes, JOINT)

    def ours(self) -> Tensor:
        """(*, K, E) text features."""
        return self.encoder(self.ctx, self.deep)

    def plain(self) -> Tensor:
        """(K, E) text features for the first context."""
        model, positions = self.clip.model, self.slots[0] >= 0
        context = self.ctx.reshape(-1, *self.ctx.shape[-2:])[0]
        x = model.token_embedding(self.ids)
        x[:, positions] = context
        x = x + model.positional_embedding
        for layer, block in enumerate(model.transformer.resblocks):
            if layer in self.deep:
                x = x.clone()
                x[:, positions] = self.deep[layer]
            x = block(x, attn_mask=model.attn_mask)
        pooled = model.ln_final(x)[torch.arange(len(x)), self.ids.argmax(1)]
        return torch.nn.functional.normalize(pooled @ model.text_projection, dim=-1)

    def step(self, features=None) -> float:
        """Seconds for features (ours unless said) and gradients."""
        began = time.process_time()
        ((features or self.ours)() * self.target).sum().backward()
        return time.process_time() - began

    @torch.no_grad()
    def largest_difference(self) -> float:
        """Between our features and the plain ones."""
        return float((self.ours().reshape(-1, *self.target.shape)[0] - self.plain()).abs().max())


def measure_speed(rows: list[str], classes: int, repeats: int) -> list[dict]:
    """Steps of every row, each in turn with a plain one."""
    clip, results = load_clip(), []
    steps = {row: Step(clip, classes, row) for row in rows}
    seconds = {row: ([], []) for row in rows}
    for _ in range(repeats):
        for row, step in steps.items():
            contexts = step.ctx.shape[:-2].numel()
            seconds[row][1].append(contexts * step.step(step.plain))
            step.step()
            seconds[row][0].append(step.step())
            print(f"{row}: {seconds[row][0][-1]:.3f} s, plain {seconds[row][1][-1]:.1f} s", flush=True)
    for row, (ours, plain) in seconds.items():
        step = steps[row]
        results.append(
            {
                "row": row,
                "classes": classes,
                "seconds": statistics.median(ours),
                "plain_seconds": statistics.median(plain),
                "all_seconds": ours,
                "all_plain_seconds": plain,
                "ratio": statistics.median(plain) / statistics.median(ours),
                "difference": step.largest_difference(),
            }
        )
    return results


def markdown(results: dict) -> str:
    """The table of speed."""
    lines = [
        f"{results['machine']}. CPUs kept busy by other processes: {results['others_load']:.1f}.",
        "",
        "| row | K | plain s | ours s | times | largest difference of features |",
        "|---|---|---|---|---|---|",
    ]
    for r in results["speed"]:
        lines.append(
            f"| {r['row']} | {r['classes']} | {r['plain_seconds']:.2f} | {r['seconds']:.3f} | {r['ratio']:.1f} "
            f"| {r['difference']:.1e} |"
        )
    return "\n".join([*lines, ""])


def measure_memory() -> None:
    """Peak of CoCoOp's step with one image, and with four in chunks, each in a process of its own."""
    for row, options in (("cocoop_1", {}), ("cocoop_4", {"class_chunk": 1000}), ("cocoop_1", {"checkpoint": True})):
        command = [sys.executable, __file__, "--memory-of", json.dumps([row, 1000, options])]
        peak = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
        print(f"{row}, K = 1000, {options}: {peak / 1e9:.2f} GB above the model", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", action="store_true", help="peak memory instead of time")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out")
    parser.add_argument("--memory-of", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.memory_of:
        row, classes, options = args.memory_of
        step = Step(load_clip(), classes, row, **options)
        print(step_memory(step.ours, step.step))
    elif args.memory:
        measure_memory()
    else:
        load = OthersLoad()
        speed = measure_speed(args.rows, args.classes, args.repeats)
        results = {"machine": processor(), "others_load": load(), "speed": speed}
        args.out.mkdir(parents=True, exist_ok=True)
        write(args.out / "text_encoder_methods.json", json.dumps(results, indent=1))
        write(args.out / "text_encoder_methods.md", markdown(results))
        print(markdown(results))


if __name__ == "__main__":
    main()
