"""The text encoder in a training step, ours against the plain way: time, memory, growth with the number of classes.

    python benchmarks/text_encoder.py            everything, about 40 minutes on one CPU core
    python benchmarks/text_encoder.py --quick    up to 100 classes, some two minutes

A step is the text features of all classes and their gradient in the context vectors. The text tower is that of
ViT-B/16 (width 512, 12 layers, 8 heads), randomly initialized: its speed does not depend on its weights. Class names
are open_clip's ImageNet names. Everything runs in one thread, the two ways in turn, and medians over repeats are
reported. Clock: CPU time of this process, so that waiting for a core does not count. Other work still slows a step
through caches, and ours more than the plain one: measure on an idle machine. The load of others is reported, too.

Results go to benchmarks/out: text_encoder.json, text_encoder.md, text_encoder.png. `--parts` measures some of it again
and keeps the rest.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "0")

import open_clip
import torch
import torch.nn.functional as F
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

from coop import FrozenCLIP, PromptLearner

WIDTH, JOINT = 512, 512
GROWTH_CHUNK = 500  # classes; without chunks, activations outgrow the caches and a class costs a quarter more
LARGEST_PLAIN = 100  # classes: 1000 of the plain way need over 20 GB and minutes
PARTS = ("speed", "memory", "growth")
VARIANTS = {  # class_specific, class_token_position
    "unified, end": (False, "end"),
    "unified, middle": (False, "middle"),
    "unified, front": (False, "front"),
    "class-specific, end": (True, "end"),
    "class-specific, front": (True, "front"),
}
MEMORY = [  # classes, context vectors, variant, options
    (1000, 16, "unified, end", {}),
    (1000, 16, "unified, end", {"checkpoint": True}),
    (1000, 16, "unified, end", {"class_chunk": 100}),
    (1000, 16, "class-specific, end", {}),
    (1000, 16, "class-specific, end", {"checkpoint": True}),
    (1000, 16, "class-specific, end", {"class_chunk": 100}),
    (100, 16, "plain", {}),
]


def plain_text_features(clip, ids, slots, ctx):
    """The text encoder as the paper uses it: every prompt, every one of its 77 tokens, in every step."""
    x = clip.token_embedding(ids)
    x[slots >= 0] = ctx.expand(len(ids), -1, -1).reshape(-1, WIDTH)
    x = x + clip.positional_embedding
    x = clip.transformer(x, attn_mask=clip.attn_mask)
    x = clip.ln_final(x)
    x = x[torch.arange(len(ids)), ids.argmax(dim=-1)] @ clip.text_projection
    return F.normalize(x, dim=-1)


class OthersLoad:
    """CPUs that other processes kept busy, on average since this was made. Linux; nan elsewhere."""

    def __init__(self):
        self.began, self.own, self.all = time.monotonic(), time.process_time(), self._busy()

    def __call__(self) -> float:
        others = self._busy() - self.all - (time.process_time() - self.own)
        return max(0.0, others / (time.monotonic() - self.began))

    @staticmethod
    def _busy() -> float:
        stat = Path("/proc/stat")
        if not stat.exists():
            return float("nan")
        user, nice, system, _, _, irq, softirq, steal = map(int, stat.read_text().split()[1:9])
        return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def load_clip() -> FrozenCLIP:
    """ViT-B/16's text tower behind a token image tower, random weights."""
    torch.manual_seed(0)
    vision = {"image_size": 32, "layers": 1, "width": 64, "head_width": 64, "patch_size": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": WIDTH, "heads": 8, "layers": 12}
    return FrozenCLIP(open_clip.CLIP(JOINT, vision, text, quick_gelu=True), open_clip.SimpleTokenizer())


def classnames(count: int) -> list[str]:
    """ImageNet's names, then as many more as are wanted: the first word of one with the other words of another."""
    names = [IMAGENET_CLASSNAMES[i % 1000].split() for i in range(count)]
    first_words = [IMAGENET_CLASSNAMES[(i + 37 * (i // 1000)) % 1000].split()[0] for i in range(count)]
    return [" ".join([word, *name[1:]]) for word, name in zip(first_words, names, strict=True)]


class Case:
    """One number of classes, length of context, variant; ours, or the plain way."""

    def __init__(self, clip: FrozenCLIP, classes: int, n_ctx: int, variant: str, **options):
        class_specific, position = VARIANTS[variant] if variant != "plain" else (False, "end")
        torch.manual_seed(n_ctx)
        began = time.process_time()
        self.learner = PromptLearner(
            clip,
            classnames(classes),
            n_ctx=n_ctx,
            class_specific=class_specific,
            class_token_position=position,
            **options,
        )
        self.tokens = 77 * classes if variant == "plain" else self.learner.encoder.tokens_computed
        self.planning = time.process_time() - began
        self.plain = variant == "plain"
        self.target = torch.randn(classes, JOINT, generator=torch.Generator().manual_seed(0))

    def features(self, plain: bool) -> torch.Tensor:
        """(K, E) text features."""
        learner = self.learner
        if not plain:
            return learner()
        return plain_text_features(learner.clip.model, learner.ids, learner.slots, learner.ctx)

    def step(self) -> float:
        """Seconds for features and gradient."""
        self.learner.ctx.grad = None
        began = time.process_time()
        (self.features(self.plain) * self.target).sum().backward()
        return time.process_time() - began

    def steady_step(self) -> float:
        """Seconds of a step that follows on another, as in training: memory that the first one got is there."""
        self.step()
        return self.step()

    @torch.no_grad()
    def largest_logit_difference(self) -> float:
        """Between ours and the plain way, against random images at CLIP's temperature of 100."""
        images = F.normalize(torch.randn(64, JOINT, generator=torch.Generator().manual_seed(1)), dim=-1)
        ours, plain = (100 * images @ self.features(plain).T for plain in (False, True))
        return float((ours - plain).abs().max())


def measure_speed(quick: bool, repeats: int) -> list[dict]:
    """Steps of every variant, in turn with plain ones (whose cost depends on the number of classes alone)."""
    rows, clip = [], load_clip()
    for classes in (10, 100) if quick else (10, 100, 1000):
        plain = Case(clip, min(classes, LARGEST_PLAIN), 16, "plain")
        scale = classes / min(classes, LARGEST_PLAIN)
        cases = {(variant, m): Case(clip, classes, m, variant) for variant in VARIANTS for m in (16, 4)}
        seconds = {key: [] for key in [*cases, "plain"]}
        for _ in range(repeats if scale == 1 else min(repeats, 3)):
            seconds["plain"].append(scale * plain.steady_step())
            for key, case in cases.items():
                seconds[key].append(case.steady_step())
        plain_seconds = statistics.median(seconds["plain"])
        for (variant, m), case in cases.items():
            median = statistics.median(seconds[variant, m])
            row = {
                "classes": classes,
                "n_ctx": m,
                "variant": variant,
                "seconds": median,
                "all_seconds": seconds[variant, m],
                "plain_seconds": plain_seconds,
                "all_plain_seconds": seconds["plain"],
                "plain_extrapolated": scale > 1,
                "ratio": plain_seconds / median,
                "tokens": case.tokens,
                "planning_seconds": case.planning,
                "logit_difference": case.largest_logit_difference() if scale == 1 else None,
            }
            rows.append(row)
            print(f"K={classes} M={m} {variant}: {median:.3f} s, {row['ratio']:.1f} times", flush=True)
    return rows


def measure_memory(quick: bool, repeats: int) -> list[dict]:
    """Peak memory of a step above what the process holds before it, each in a process of its own."""
    rows = []
    for classes, n_ctx, variant, options in MEMORY:
        classes = min(classes, 100) if quick else classes
        config = {"classes": classes, "n_ctx": n_ctx, "variant": variant, "options": options}
        command = [sys.executable, __file__, "--memory-of", json.dumps(config)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        rows.append({**config, "bytes": int(output.split()[-1])})
        print(f"K={classes} {variant} {options}: {rows[-1]['bytes'] / 1e9:.2f} GB", flush=True)
    return rows


def memory_of(config: dict) -> int:
    """Bytes that a step of a case needs."""
    case = Case(load_clip(), config["classes"], config["n_ctx"], config["variant"], **config["options"])
    return step_memory(lambda: None if case.plain else case.features(plain=False), case.step)


def step_memory(features, step) -> int:
    """Bytes that the largest of two steps needs above model, plan and constants, made by `features`. Linux."""
    with torch.no_grad():
        features()
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    step()
    step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def measure_growth(quick: bool, repeats: int) -> list[dict]:
    """Steps for up to 21 000 classes (ImageNet-21k's number), in chunks, so that the largest fits."""
    rows, clip = [], load_clip()
    for classes in (1000, 2000) if quick else (1000, 2000, 5000, 10_000, 21_000):
        case = Case(clip, classes, 16, "unified, end", class_chunk=GROWTH_CHUNK)
        seconds = [case.step() for _ in range(3 if classes <= 2000 else 1)]
        row = {"classes": classes, "seconds": min(seconds), "tokens": case.tokens, "planning_seconds": case.planning}
        rows.append(row)
        print(
            f"K={classes}: {row['seconds']:.2f} s, {case.tokens} tokens, planned in {case.planning:.2f} s", flush=True
        )
    return rows


def markdown(results: dict) -> str:
    """All measured figures as tables."""
    others = ", ".join(f"{part} {load:.1f}" for part, load in results["others_load"].items())
    lines = [f"{results['machine']}. CPUs kept busy by other processes: {others}.", ""]
    if "speed" in results:
        lines += [
            "| K | M | variant | tokens computed | plain s | ours s | times | largest logit difference |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for r in results["speed"]:
            plain = f"{r['plain_seconds']:.2f}" + (" *" if r["plain_extrapolated"] else "")
            difference = "" if r["logit_difference"] is None else f"{r['logit_difference']:.1e}"
            lines.append(
                f"| {r['classes']} | {r['n_ctx']} | {r['variant']} | {r['tokens']} of {77 * r['classes']} | {plain} "
                f"| {r['seconds']:.3f} | {r['ratio']:.1f} | {difference} |"
            )
        lines += [
            "",
            "* extrapolated: ten times the step of 100 classes, in turn with ours; all at once needs over 20 GB.",
            "",
        ]
    if "memory" in results:
        lines += ["| K | M | variant | options | peak of a step above the model, GB |", "|---|---|---|---|---|"]
        for r in results["memory"]:
            options = ", ".join(f"{key}={value}" for key, value in r["options"].items()) or "none"
            gigabytes = f"{r['bytes'] / 1e9:.2f}"
            lines.append(f"| {r['classes']} | {r['n_ctx']} | {r['variant']} | {options} | {gigabytes} |")
        lines.append("")
    if "growth" in results:
        first = results["growth"][0]["seconds"] / results["growth"][0]["classes"]
        lines += [
            "| K | tokens computed | s | s per class, of the first line's | planning s |",
            "|---|---|---|---|---|",
        ]
        for r in results["growth"]:
            share = r["seconds"] / r["classes"] / first
            lines.append(
                f"| {r['classes']} | {r['tokens']} | {r['seconds']:.2f} | {share:.2f} | {r['planning_seconds']:.2f} |"
            )
        lines += ["", f"Unified context at the end, M = 16, class_chunk={GROWTH_CHUNK}.", ""]
    return "\n".join(lines)


def draw(results: dict, path: Path) -> None:
    """Ratios of the speed table, and time against the number of classes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (ratios, growth) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    speed = [r for r in results.get("speed", []) if r["n_ctx"] == 16]
    counts = sorted({r["classes"] for r in speed})
    for i, classes in enumerate(counts):
        rows = [r for r in speed if r["classes"] == classes]
        places = [j + 0.8 * (i - (len(counts) - 1) / 2) / len(counts) for j in range(len(rows))]
        bars = ratios.bar(places, [r["ratio"] for r in rows], 0.8 / len(counts), label=f"{classes} classes")
        ratios.bar_label(bars, fmt="%.0f", fontsize=8)
    ratios.set_xticks(range(len(VARIANTS)), [variant.replace(", ", ",\n") for variant in VARIANTS])
    ratios.set_ylabel("plain time / our time")
    ratios.set_title("One step of the text encoder, M = 16")
    ratios.legend()
    rows = results.get("growth", [])
    growth.loglog([r["classes"] for r in rows], [r["seconds"] for r in rows], "o-", label="measured")
    if rows:
        linear = [rows[0]["seconds"] * r["classes"] / rows[0]["classes"] for r in rows]
        growth.loglog([r["classes"] for r in rows], linear, "k:", label="linear")
    growth.set_xlabel("classes")
    growth.set_ylabel("seconds per step")
    growth.set_title(f"Growth, unified context at the end, class_chunk={GROWTH_CHUNK}")
    growth.legend()
    figure.savefig(path, dpi=150)


def write(path: Path, text: str) -> None:
    """Write a whole file or none."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def processor() -> str:
    """What the figures were measured on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"{name}, {torch.get_num_threads()} thread, float32, torch {torch.__version__}, CPU time"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="up to 100 classes")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out")
    parser.add_argument("--memory-of", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.memory_of:
        print(memory_of(args.memory_of))
        return
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / ("text_encoder_quick.json" if args.quick else "text_encoder.json")
    results = json.loads(file.read_text()) if file.exists() else {}
    results["machine"] = processor()
    print(results["machine"], flush=True)
    measure = {"speed": measure_speed, "memory": measure_memory, "growth": measure_growth}
    for part in args.parts:
        load = OthersLoad()
        results[part] = measure[part](args.quick, args.repeats)
        results.setdefault("others_load", {})[part] = load()
        write(file, json.dumps(results, indent=1))
    write(file.with_suffix(".md"), markdown(results))
    draw(results, file.with_suffix(".png"))
    print(markdown(results))


if __name__ == "__main__":
    main()
