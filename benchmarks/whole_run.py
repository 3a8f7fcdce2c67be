"""A whole training run, ours with cached features against the plain way with everything recomputed.

Both are extrapolated from steps measured in this process, one thread each, interleaved: 100 classes, 16 shots, 50
epochs of 50 steps, 2465 test images, a randomly initialized ViT-B/32-size CLIP (its speed does not depend on its
weights). Plain: each step encodes 32 images and 100 prompts of 77 tokens, each test batch of 100 images encodes the
prompts again. Ours: a Lightning step on features that are there, the text encoder once an epoch for validation and once
for the test, and what a warm cache costs to read is left out on neither side in favor of ours: it is added.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import open_clip
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from coop import FrozenCLIP, PromptLearner
from coop.data.feature_cache import FeatureCache, identify
from coop.data.readers.split_file import PUBLISHED, load_rows
from coop.training.module import LitClassifier

CLASSES, EPOCHS, STEPS, BATCH, TEST_IMAGES, TEST_BATCH = 100, 50, 50, 32, 2465, 100
OPTIMIZER = {
    "name": "sgd",
    "lr": 0.002, "momentum": 0.9, "weight_decay": 5e-4, "eps": 1e-8, "warmup_epochs": 1, "warmup_lr": 1e-5,
}  # fmt: skip


def plain_logits(model, images, ids, ctx, n_ctx):
    """The way the original computes logits: every image and every prompt, 77 tokens each."""
    with torch.no_grad():
        image_features = F.normalize(model.encode_image(images), dim=-1)
    embeddings = model.token_embedding(ids)
    embeddings = torch.cat([embeddings[:, :1], ctx.expand(len(ids), -1, -1), embeddings[:, 1 + n_ctx :]], dim=1)
    x = model.transformer(embeddings + model.positional_embedding, attn_mask=model.attn_mask)
    x = model.ln_final(x)[torch.arange(len(ids)), ids.argmax(dim=-1)] @ model.text_projection
    return model.logit_scale.exp() * image_features @ F.normalize(x, dim=-1).T


def seconds(call) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


class StepTimes(pl.Callback):
    """Wall time from the end of one step to the end of the next: all of Lightning's cost is in it."""

    def __init__(self):
        self.times, self.last = [], None

    def on_train_batch_end(self, *_):
        now = time.perf_counter()
        if self.last is not None:
            self.times.append(now - self.last)
        self.last = now


def our_step_seconds(clip, learner, features, labels, steps):
    """Median time of a step of the product's own training loop."""
    batches = [{"image_features": features, "label": labels}] * (steps + 1)
    timer = StepTimes()
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            accelerator="cpu", max_epochs=1, logger=False, callbacks=[timer], enable_progress_bar=False,
            enable_checkpointing=False, enable_model_summary=False, default_root_dir=folder,
        )  # fmt: skip
        trainer.fit(LitClassifier(learner, OPTIMIZER, epochs=1), DataLoader(batches, batch_size=None))
    return statistics.median(timer.times)


def cache_read_seconds(width: int) -> float:
    """Looking up all features of a run in a warm cache."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder, f"{index}.jpg")) for index in range(CLASSES * 20 + TEST_IMAGES)]
        for path in paths:
            Path(path).touch()
        cache = FeatureCache(Path(folder), "benchmark")
        features = torch.randn(len(paths), width)
        cache.add(identify(paths), features)
        return seconds(lambda: cache.lookup(identify(paths), features))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = open_clip.create_model("ViT-B-32-quickgelu")
    clip = FrozenCLIP(model, open_clip.get_tokenizer("ViT-B-32-quickgelu"), name="ViT-B-32, random weights")
    rows = load_rows(PUBLISHED / "split_zhou_Caltech101.json.gz")["test"]
    names = list(dict(sorted((label, name) for _, label, name in rows)).values())
    learner = PromptLearner(clip, names)
    ids, ctx = learner.ids, learner.ctx.detach().clone().requires_grad_()
    images, labels = torch.randn(TEST_BATCH, 3, 224, 224), torch.arange(BATCH) % CLASSES
    features = F.normalize(torch.randn(BATCH, model.text_projection.shape[1]), dim=-1)

    def plain_step():
        F.cross_entropy(plain_logits(model, images[:BATCH], ids, ctx, learner.n_ctx), labels).backward()

    @torch.no_grad()
    def plain_test_batch():
        plain_logits(model, images, ids, ctx, learner.n_ctx)

    times = {"plain step": [], "plain test batch": [], "our step": [], "our text encoder": []}
    for _ in range(options.repeats):
        times["plain step"].append(seconds(plain_step))
        times["our step"].append(our_step_seconds(clip, learner, features, labels, steps=6))
        times["plain test batch"].append(seconds(plain_test_batch))
        learner.eval()
        with torch.no_grad():
            times["our text encoder"].append(seconds(learner))
    median = {key: statistics.median(values) for key, values in times.items()}
    test_batches = -(-TEST_IMAGES // TEST_BATCH)
    plain = EPOCHS * STEPS * median["plain step"] + test_batches * median["plain test batch"]
    ours = EPOCHS * STEPS * median["our step"] + (EPOCHS + 1) * median["our text encoder"] + cache_read_seconds(512)
    result = {"median seconds": median, "plain run, s": plain, "our run, s": ours, "ratio": plain / ours}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "whole_run.json").write_text(json.dumps(result, indent=2) + "\n")
    for key, value in median.items():
        print(f"{key:<18}{value:8.3f} s (median of {options.repeats})")
    print(f"extrapolated to a whole run: plain {plain:.0f} s, ours {ours:.0f} s, ratio {plain / ours:.1f}")


if __name__ == "__main__":
    main()
