"""Steps that reach into ViT-B/16's towers, ours against the plain way: time and memory.

    python benchmarks/image_tower.py            all, some five minutes on one CPU core
    python benchmarks/image_tower.py --memory   peak memory of the image tower's steps instead

- **prompts**: features of 4 images and their gradient in 2 prompts in front of each of 9 layers (MaPLe's numbers). The
  plain prompted tower runs every row through every block, as the authors' code does; the plain fine-tuning step is the
  model's own forward, with the gradient of all its weights (and no step of an optimizer).
- **low rank**: features and gradient of CLIP-LoRA (rank 2, queries, keys and values of both towers), 32 images, 100
  classes, against peft's LoRA on the same model, which changes the output projection too; so do we in "ours, q k v o".
  Without dropout, which peft does not have on open_clip's attention. One tower after the other, to bound memory. Both
  image towers have the same number of tokens; peft's text encoder takes all 77, as the model does.

Weights are random. Steps of all kinds in turn, one thread, medians. Clock: CPU time (see `text_encoder.py`).
"""

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "0")

import open_clip
import torch
import torch.nn.functional as F
from text_encoder import OthersLoad, classnames, processor, step_memory, write
from torch import Tensor

from coop import FrozenCLIP
from coop.clip.image_tower import ImageTower
from coop.methods.clip_lora import CLIPLoRA

IMAGES, N_CTX, DEPTH, WIDTH = 4, 2, 9, 768
OURS_TOO = "ours, q k v o"
KINDS = ("ours", "plain prompted tower", "plain fine-tuning")


def load() -> FrozenCLIP:
    torch.manual_seed(0)
    return FrozenCLIP(open_clip.create_model("ViT-B-16-quickgelu"), open_clip.get_tokenizer("ViT-B-16"), "ViT-B-16")


def plain_prompted(visual, images: Tensor, prompts: list[Tensor]) -> Tensor:
    """All rows through all blocks."""
    x = visual.conv1(images).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], dim=1) + visual.positional_embedding
    x = visual.ln_pre(torch.cat([x, prompts[0].expand(len(x), -1, -1)], dim=1))
    for layer, block in enumerate(visual.transformer.resblocks):
        if 0 < layer < len(prompts):
            x = torch.cat([x[:, :-N_CTX], prompts[layer].expand(len(x), -1, -1)], dim=1)
        x = block(x)
    return F.normalize(visual._pool(x)[0] @ visual.proj, dim=-1)


class ImageSteps:
    """The three kinds of step of the image tower."""

    def __init__(self, kinds=KINDS):
        self.clip = load()
        self.prompts = [(0.02 * torch.randn(N_CTX, WIDTH)).requires_grad_() for _ in range(DEPTH)]
        self.images, self.target = torch.randn(IMAGES, 3, 224, 224), torch.randn(IMAGES, 512)
        self.tower, visual = ImageTower(self.clip), self.clip.model.visual
        trained = copy.deepcopy(visual).requires_grad_(True) if KINDS[2] in kinds else None
        forwards = {
            "ours": lambda: self.tower(self.images, self.prompts),
            "plain prompted tower": lambda: plain_prompted(visual, self.images, self.prompts),
            "plain fine-tuning": lambda: F.normalize(trained(self.images), dim=-1),
        }
        self.forwards = {kind: forwards[kind] for kind in kinds}
        self.trained = trained

    def step(self, kind: str) -> None:
        (self.forwards[kind]() * self.target).sum().backward()
        for tensor in [*self.prompts, *(self.trained.parameters() if self.trained else [])]:
            tensor.grad = None

    @torch.no_grad()
    def largest_difference(self) -> float:
        return float((self.forwards["ours"]() - self.forwards["plain prompted tower"]()).abs().max())


class LowRankSteps:
    """CLIP-LoRA's features and their gradient, and peft's, of one tower at a time."""

    def __init__(self, images: int, classes: int):
        from peft import LoraConfig, get_peft_model

        clip, names, prompt = load(), classnames(classes), "a photo of a {}."
        ids, model = clip.tokenize([prompt.replace("{}", name) for name in names]), copy.deepcopy(clip.model)
        low_rank = get_peft_model(model, LoraConfig(r=2, target_modules=["attn"], lora_alpha=1, lora_dropout=0.0))
        self.models, self.images = {"peft": low_rank}, torch.randn(images, 3, 224, 224)
        for kind, params in (("ours", "qkv"), (OURS_TOO, "qkvo")):
            self.models[kind] = CLIPLoRA(clip, names, templates=[prompt], dropout=0.0, params=list(params))
        self.encode_text = {kind: self.models[kind].forward for kind in ("ours", OURS_TOO)}
        self.encode_text["peft"] = lambda: model.encode_text(ids, normalize=True)

    def of_images(self, kind: str) -> None:
        self._backward(kind, self.models[kind].encode_image(self.images))

    def of_texts(self, kind: str) -> None:
        self._backward(kind, self.encode_text[kind]())

    def _backward(self, kind: str, features: Tensor) -> None:
        features[:, 0].sum().backward()
        for parameter in self.models[kind].parameters():
            parameter.grad = None


def measure(step: Callable[[str], None], kinds: list[str], repeats: int) -> dict[str, list[float]]:
    """Seconds of each kind's steps, in turn; the first round does not count."""
    seconds = {kind: [] for kind in kinds}
    for _ in range(repeats + 1):
        for kind in kinds:
            began = time.process_time()
            step(kind)
            seconds[kind].append(time.process_time() - began)
    return {kind: values[1:] for kind, values in seconds.items()}


def markdown(results: dict) -> str:
    lines = [
        f"{results['machine']}. CPUs kept busy by other processes: {results['others_load']:.1f}.",
        f"Largest difference of image features with prompts: {results['difference']:.1e}.",
        "",
        "| step | seconds | times ours |",
        "|---|---|---|",
    ]
    for group in ("prompts", "low rank, images", "low rank, texts", "low rank"):
        medians = {kind: statistics.median(values) for kind, values in results[group].items()}
        lines += [f"| {group}: {kind} | {s:.3f} | {s / medians['ours']:.2f} |" for kind, s in medians.items()]
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--images", type=int, default=32, help="of a step with low-rank weights")
    parser.add_argument("--classes", type=int, default=100, help="likewise")
    parser.add_argument("--memory", action="store_true", help="peak memory instead of time")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out")
    parser.add_argument("--memory-of", choices=KINDS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.memory_of:
        steps = ImageSteps((args.memory_of,))
        print(step_memory(steps.forwards[args.memory_of], lambda: steps.step(args.memory_of)))
    elif args.memory:
        for kind in KINDS:
            command = [sys.executable, __file__, "--memory-of", kind]
            peak = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
            print(f"{kind}: {peak / 1e6:.0f} MB above the model", flush=True)
    else:
        load_of_others, steps = OthersLoad(), ImageSteps()
        results = {"prompts": measure(steps.step, list(KINDS), args.repeats), "difference": steps.largest_difference()}
        low_rank, fewer = LowRankSteps(args.images, args.classes), max(1, args.repeats // 4)
        for group, step in (("low rank, images", low_rank.of_images), ("low rank, texts", low_rank.of_texts)):
            results[group] = measure(step, ["ours", OURS_TOO, "peft"], fewer)
        sides = zip(*(results[f"low rank, {side}"].items() for side in ("images", "texts")), strict=True)
        results["low rank"] = {kind: [a + b for a, b in zip(x, y, strict=True)] for (kind, x), (_, y) in sides}
        results |= {"machine": processor(), "others_load": load_of_others()}
        args.out.mkdir(parents=True, exist_ok=True)
        write(args.out / "image_tower.json", json.dumps(results, indent=1))
        write(args.out / "image_tower.md", markdown(results))
        print(markdown(results))


if __name__ == "__main__":
    main()
