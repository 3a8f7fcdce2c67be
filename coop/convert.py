"""python -m coop.convert CHECKPOINT: a prompt that the original CoOp code has trained, as a run of this project."""

from coop.cli.options import run_command

USAGE = """python -m coop.convert CHECKPOINT out=RUN_DIR dataset=NAME backbone=NAME shots=N seed=N [key=value ...]

  CHECKPOINT     .../prompt_learner/model.pth.tar-50, as the original CoOp code writes it
  out=RUN_DIR    where the converted run goes; coop.evaluate, predict, export and interpret take it like any other
  dataset=, backbone=, shots=, seed=    what it was trained on; data_root=DIR as in coop.train
  method.class_token_position=middle    if it was not the end: the file does not say
  classnames=FILE    the class names, one a line in the order of the labels (lines of `wnid name` too)

No photographs are needed: without them, class names come from classnames=FILE, dataset.classnames, or the split or
list of classes that comes with the package.

The length of the context, and whether it is class-specific, are read from the file, and its embeddings of the class
names are compared with ours. No code in the file is run."""

if __name__ == "__main__":  # before the imports below: --help and most mistakes need no torch
    run_command("convert", USAGE)

import os
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from omegaconf import MISSING, DictConfig, OmegaConf
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from coop.cli.options import split
from coop.cli.overrides import compose_training
from coop.clip.backbone import FrozenCLIP
from coop.config import build_method, check
from coop.data.readers import read_dataset
from coop.data.readers.classnames import named_in_config, packaged_names
from coop.data.sampling import Splits, selected_labels
from coop.errors import CoopError
from coop.evaluation.outcome import describe_prompt
from coop.methods.coop import PromptLearner
from coop.runs import CHECKPOINT, CONFIG, PROMPT, RESULTS
from coop.runs.checkpoint import check_archive
from coop.runs.prompt import save_prompt
from coop.system.files import write_atomically, write_json

REQUIRED = ("dataset", "backbone", "shots", "seed")
# Embeddings of half precision, whose largest values are below 1.
TOLERANCE = 2e-3


@dataclass
class Options:
    out: Path = MISSING
    classnames: Path | None = None


class OriginalPrompt(NamedTuple):
    """What the original code saves: ctx (M, D) or (K, M, D), and the embeddings (K, L - 1 - M, D) behind its place."""

    ctx: Tensor
    suffix: Tensor


class _Inert:
    """Takes the place of every class that a checkpoint names: nothing of it is imported or called."""

    def __init__(self, *_, **__):
        pass

    def __setstate__(self, _):
        pass


def main(words: list[str]) -> int:
    """Read, compare, write; returns the exit code."""
    checkpoint, overrides, options = split_words(words)
    original = read_original(checkpoint)
    cfg = load_config(overrides, original.ctx)
    splits = trained_classes(cfg, options.classnames)
    clip = FrozenCLIP.load(**cfg.backbone)
    check_embeddings(original, clip, splits.classnames, checkpoint)
    method = build_method(cfg.method, clip, splits.classnames)
    method.ctx.data.copy_(original.ctx)
    write_run(options.out, method, cfg, splits, checkpoint)
    print(f"run      {options.out}\npython -m coop.evaluate run={options.out}")
    return 0


def split_words(words: list[str]) -> tuple[Path, list[str], Options]:
    """The checkpoint, the overrides of coop.train's config, and the command's own options. Raises CoopError."""
    files, overrides, options = split(words, Options)
    if len(files) != 1:
        raise CoopError(
            f"give one checkpoint, .../prompt_learner/model.pth.tar-50 (there are {len(files)} in the command)"
        )
    if missing := [key for key in REQUIRED if not any(word.startswith(f"{key}=") for word in overrides)]:
        raise CoopError(f"{missing[0]}= is missing: the checkpoint does not say what it was trained on")
    options.out = options.out.expanduser()
    if any((options.out / name).exists() for name in (RESULTS, CONFIG, PROMPT, CHECKPOINT)):
        raise CoopError(f"out={options.out}: holds a run already; choose another folder")
    return Path(files[0]).expanduser(), overrides, options


def read_original(path: Path) -> OriginalPrompt:
    """Read a checkpoint of the original code, without running any code that it names.

    Besides tensors it pickles schedulers and optimizers, which torch's safe loading refuses; all classes that are not
    tensors become `_Inert`. Raises CoopError for what is no such checkpoint.
    """
    if not path.is_file():
        raise CoopError(f"{path}: no such file; expected .../prompt_learner/model.pth.tar-50")
    if not os.access(path, os.R_OK):
        raise CoopError(f"{path}: no permission to read this file. Fix it with: chmod u+r '{path}'")
    try:
        if zipfile.is_zipfile(path):
            check_archive(path)
        stand_ins = [(_Inert, name) for name in get_unsafe_globals_in_checkpoint(path)]
        with safe_globals(stand_ins):
            content = torch.load(path, map_location="cpu", weights_only=True)
        state = content["state_dict"]
        original = OriginalPrompt(state["ctx"].float(), state["token_suffix"].float())
    except Exception as error:  # a file of another kind makes torch raise nearly anything
        # Torch's own words advise to load the file without its checks.
        other = "damaged, of another kind, or with Python objects that could run code, which are not loaded"
        reason = f'no "{error.args[0]}"' if isinstance(error, KeyError) else other
        raise CoopError(f"{path}: not a prompt of the original CoOp code ({reason})") from error
    if original.ctx.ndim not in (2, 3) or original.suffix.ndim != 3:
        raise CoopError(f"{path}: ctx has shape {tuple(original.ctx.shape)}; expected (M, D) or (K, M, D)")
    return original


def load_config(overrides: list[str], ctx: Tensor) -> DictConfig:
    """The config that coop.train would have had, with the context's own length and kind."""
    own = [f"method.n_ctx={ctx.shape[-2]}", f"method.class_specific={str(ctx.ndim == 3).lower()}", "method=coop"]
    cfg = compose_training([*own, *overrides])
    check(cfg)
    return cfg


def trained_classes(cfg: DictConfig, names: Path | None) -> Splits:
    """The classes that the prompt was trained on, by label, in a data set without images; `names` is the user's file.

    Raises CoopError where the file cannot be read, or photographs that are not there would tell the names.
    """
    known, origin = _read_names(names.expanduser()) if names else named_in_config(cfg.dataset), "own"
    if known is None:
        try:
            whole = read_dataset(cfg.dataset, cfg.data_root)
            known, origin = whole.classnames, whole.origin
        except CoopError as error:
            known, origin = packaged_names(cfg.dataset), "published"
            if known is None:
                hint = "No images are needed with classnames=FILE: the class names, one a line, in the labels' order"
                raise CoopError(f"{error}. {hint}") from error
    labels = selected_labels(len(known), cfg.dataset.classes)
    return Splits([], [], [], known[labels.start : labels.stop], origin)


def _read_names(path: Path) -> list[str]:
    """The lines of a file of class names, without ImageNet's wnids in front."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise CoopError(f"classnames={path}: {reason}; expected a file of class names, one a line") from error
    names = [re.sub(r"^n\d{8}\s+", "", line.strip()) for line in lines if line.strip()]
    if not names:
        raise CoopError(f"classnames={path}: holds no class names; expected one a line, in the order of the labels")
    return names


def check_embeddings(original: OriginalPrompt, clip: FrozenCLIP, classnames: Sequence[str], path: Path) -> None:
    """Raises CoopError where the file's embeddings of "CLASS." [EOS] are not ours: other classes, another backbone."""
    m, (classes, _, width) = original.ctx.shape[-2], original.suffix.shape
    if classes != len(classnames):
        raise CoopError(
            f"{path}: was trained on {classes} classes, this data set has {len(classnames)}; "
            "for half of them: dataset.classes=base; for a list of your own: classnames=FILE"
        )
    if width != clip.text_width:
        raise CoopError(f"{path}: context vectors have width {width}, those of {clip.name} have {clip.text_width}")
    prompts = [f"{' '.join(['X'] * m)} {name.replace('_', ' ')}." for name in classnames]
    with torch.no_grad():
        ours = clip.token_embedding(clip.tokenize(prompts))[:, 1 + m :].float()
    if ours.shape != original.suffix.shape:
        raise CoopError(
            f"{path}: its prompts have {original.suffix.shape[1] + 1 + m} tokens, ours {clip.context_length}"
        )
    differs = ((ours - original.suffix).abs() > TOLERANCE).flatten(1).any(dim=1)
    if other := [name for name, differing in zip(classnames, differs.tolist(), strict=True) if differing]:
        raise CoopError(
            f"{path}: its embeddings of {len(other)} of {classes} class names differ from ours "
            f"({', '.join(other[:3])}): other class names, another order of classes (classnames=FILE gives both), or "
            f"not {clip.name} ({clip.pretrained})"
        )


def write_run(out: Path, method: PromptLearner, cfg: DictConfig, splits: Splits, checkpoint: Path) -> None:
    """A run's folder; its results.json has no accuracy and says where the prompt comes from."""
    write_atomically(out / CONFIG, OmegaConf.to_yaml(cfg, resolve=True).encode())
    save_prompt(out / PROMPT, method, cfg, splits.classnames)
    results = {"task": "convert", "converted_from": str(checkpoint), **describe_prompt(cfg, method, splits)}
    write_json(out / RESULTS, results)
