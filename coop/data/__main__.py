"""python -m coop.data: look at data sets, get them, and write down which images a run takes."""

import logging
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from omegaconf import DictConfig

from coop.cli.command import exit_code
from coop.cli.options import split
from coop.cli.overrides import compose_training
from coop.config import TrainConfig, check_dataset, check_schema
from coop.data.manifest import write_manifest
from coop.data.readers import read_dataset
from coop.data.sampling import Splits, sample
from coop.data.tools.catalogue import PUBLISHED
from coop.data.tools.check import report, show_reports
from coop.data.tools.show import write_picture
from coop.errors import CoopError
from coop.system.stop import stoppable

USAGE = """python -m coop.data COMMAND [NAME ...] [key=value ...]

  check [NAME ...] data_root=DIR      is it there, complete, where was it looked for, how to get it
  prepare NAME data_root=DIR          download it (what torchvision can), or build it from what is on disk
  show NAME data_root=DIR             a picture of some classes and their sampled shots (out=FILE.png)
  export NAME data_root=DIR           the images of a run as a JSON manifest (out=FILE.json)

key=value: as in coop.train, for instance shots=4 seed=2 dataset.classes=base; for your own data:
  python -m coop.data check folder dataset.path=DIR"""


@dataclass
class Options:
    """The options of all commands; other keys are those of coop.train's config."""

    dataset: str | None = None
    out: Path | None = None


def main(words: list[str]) -> int:
    """Run one command; returns the exit code."""
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    command, *rest = words
    of_one = {"prepare": run_prepare, "show": run_show, "export": run_export}
    if command not in ("check", *of_one):
        allowed = ", ".join(("check", *of_one))
        raise CoopError(f"python -m coop.data {command}: there is no such command; allowed are {allowed}")
    names, overrides, options = split(rest, Options)
    names += filter(None, [options.dataset])
    if command in of_one and len(names) != 1:
        raise CoopError(f"python -m coop.data {command}: give the name of one data set, such as caltech101")
    if options.out and command in ("check", "prepare"):
        raise CoopError(f"out={options.out}: {command} writes no such file; show and export do")
    configs = {name: load_config(name, overrides) for name in names or PUBLISHED}
    if command == "check":
        good = run_check(configs)
        return 0 if good or not names else 1
    return of_one[command](*next(iter(configs.items())), options.out)


def load_config(name: str, overrides: list[str]) -> DictConfig:
    """The config that coop.train would have for this data set; what is about the data is checked."""
    cfg = compose_training([f"dataset={name}", *overrides])
    check_schema(cfg, TrainConfig)
    check_dataset(cfg.dataset)
    return cfg


def read(cfg: DictConfig) -> Splits:
    return read_dataset(cfg.dataset, cfg.data_root)


def run_check(configs: dict[str, DictConfig]) -> bool:
    """Whether all of these data sets are there and complete."""
    reports = [report(name, partial(read, cfg)) for name, cfg in configs.items()]
    show_reports(reports, next(iter(configs.values())).data_root)
    return all(item.good for item in reports)


def run_prepare(name: str, cfg: DictConfig, _: None) -> int:
    """Download or build, unless it is complete already; then check."""
    from coop.data.tools.prepare import prepare  # brings torchvision

    if cfg.data_root is None:
        raise CoopError(f"prepare {name}: give data_root=DIR, the folder that the data sets are to lie in")
    if report(name, partial(read, cfg)).good:
        print(f"{name}: is complete already, nothing to do")
        return 0
    prepare(name, cfg.data_root)
    return 0 if run_check({name: cfg}) else 1


def run_show(name: str, cfg: DictConfig, out: Path | None) -> int:
    sampled = take(read(cfg), cfg)
    what = f"shots={cfg.shots} seed={cfg.seed}" if sampled.train else "test images"
    path = out or Path(f"{name}.png")
    write_picture(path, sampled, f"{name}, {len(sampled.classnames)} classes, {what}")
    print(f"written: {path}")
    return 0


def run_export(name: str, cfg: DictConfig, out: Path | None) -> int:
    whole = read(cfg)
    sampled = take(whole, cfg)
    path = out or Path(f"{name}_shots{cfg.shots}_seed{cfg.seed}_{cfg.dataset.classes}.json")
    write_manifest(path, whole, sampled, dataset=name, shots=cfg.shots, seed=cfg.seed, classes=cfg.dataset.classes)
    print(f"written: {path} ({len(sampled.train)} train, {len(sampled.val)} val, {len(sampled.test)} test images)")
    return 0


def take(whole: Splits, cfg: DictConfig) -> Splits:
    """What a run takes of a data set; where there is nothing to train on, its test images."""
    return sample(whole, cfg.shots if whole.train else -1, cfg.seed, cfg.dataset.classes)


if __name__ == "__main__":
    with stoppable():
        sys.exit(exit_code(main, sys.argv[1:]))
