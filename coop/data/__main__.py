"""python -m coop.data: look at data sets, get them, and write down which images a run takes."""

import logging
import sys
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from coop.cli.command import exit_code
from coop.cli.overrides import as_overrides
from coop.config import TrainConfig, check_dataset, check_schema, conf_dir
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


def main(words: list[str]) -> int:
    """Run one command; returns the exit code."""
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0
    command, *rest = words
    commands = {"check": run_check, "prepare": run_prepare, "show": run_show, "export": run_export}
    if command not in commands:
        raise CoopError(f"python -m coop.data {command}: there is no such command; allowed are {', '.join(commands)}")
    names, options = parse(rest)
    return commands[command](names, options)


def parse(words: list[str]) -> tuple[list[str], dict[str, str]]:
    """Names, and key=value options; dataset=NAME is a name like any other."""
    names = [word for word in words if "=" not in word]
    options = dict(word.split("=", 1) for word in words if "=" in word)
    if "dataset" in options:
        names.append(options.pop("dataset"))
    if strange := [name for name in names if name.startswith("-")]:
        raise CoopError(f"{strange[0]}: options are written as key=value, such as data_root=DIR or out=FILE")
    return names, options


def load_config(name: str, options: dict[str, str]) -> DictConfig:
    """The config that coop.train would have for this data set; what is about the data is checked."""
    overrides = as_overrides([f"dataset={name}", *(f"{key}={value}" for key, value in options.items())])
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("train", overrides=overrides)
    check_schema(cfg, TrainConfig)
    check_dataset(cfg.dataset)
    return cfg


def run_check(names: list[str], options: dict[str, str]) -> int:
    """Exit code 1 if a data set that was asked for by name is not there or not complete."""
    reports = []
    for name in names or PUBLISHED:
        cfg = load_config(name, options)
        reports.append(report(name, lambda cfg=cfg: read_dataset(cfg.dataset, cfg.data_root)))
    show_reports(reports, options.get("data_root"))
    return 1 if names and not all(item.good for item in reports) else 0


def run_prepare(names: list[str], options: dict[str, str]) -> int:
    """Download or build, unless it is complete already; then check."""
    from coop.data.tools.prepare import prepare  # brings torchvision

    name = only(names, "prepare")
    cfg = load_config(name, options)
    if cfg.data_root is None:
        raise CoopError(f"prepare {name}: give data_root=DIR, the folder that the data sets are to lie in")
    before = report(name, lambda: read_dataset(cfg.dataset, cfg.data_root))
    if before.good:
        print(f"{name}: is complete already, nothing to do")
        return 0
    prepare(name, cfg.data_root)
    return run_check([name], options)


def run_show(names: list[str], options: dict[str, str]) -> int:
    name = only(names, "show")
    out = Path(options.pop("out", f"{name}.png"))
    cfg = load_config(name, options)
    sampled = take(read_dataset(cfg.dataset, cfg.data_root), cfg)
    what = f"shots={cfg.shots} seed={cfg.seed}" if sampled.train else "test images"
    write_picture(out, sampled, f"{name}, {len(sampled.classnames)} classes, {what}")
    print(f"written: {out}")
    return 0


def run_export(names: list[str], options: dict[str, str]) -> int:
    name = only(names, "export")
    out = options.pop("out", None)
    cfg = load_config(name, options)
    whole = read_dataset(cfg.dataset, cfg.data_root)
    sampled = take(whole, cfg)
    path = Path(out or f"{name}_shots{cfg.shots}_seed{cfg.seed}_{cfg.dataset.classes}.json")
    write_manifest(path, whole, sampled, dataset=name, shots=cfg.shots, seed=cfg.seed, classes=cfg.dataset.classes)
    print(f"written: {path} ({len(sampled.train)} train, {len(sampled.val)} val, {len(sampled.test)} test images)")
    return 0


def take(whole: Splits, cfg: DictConfig) -> Splits:
    """What a run takes of a data set; where there is nothing to train on, its test images."""
    return sample(whole, cfg.shots if whole.train else -1, cfg.seed, cfg.dataset.classes)


def only(names: list[str], command: str) -> str:
    if len(names) != 1:
        raise CoopError(f"python -m coop.data {command}: give the name of one data set, such as caltech101")
    return names[0]


@stoppable()
def run(words: list[str]) -> int:
    """What the user can fix ends as one message and exit code 1; HYDRA_FULL_ERROR=1 shows the traceback."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    return exit_code(main, words)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
