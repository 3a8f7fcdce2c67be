"""coop.run: what `python -m coop.train` does, within this process."""

import importlib
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra import initialize_config_dir
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig
from pytorch_lightning.utilities.seed import isolate_rng

from coop.cli.checks import check_one_run, check_training
from coop.cli.messages import explain
from coop.cli.overrides import as_overrides, compose_training, quoted
from coop.config import conf_dir
from coop.errors import CoopError
from coop.evaluation.finished import Run, load_run
from coop.system.devices import quiet_lightning
from coop.system.memory import freed_memory_kept

ONE = "coop.run is one run; several: a loop in Python, or `python -m coop.train -m ...`"


def run(*words: str, config_dir: str | None = None) -> Run:
    """Train and test as `python -m coop.train WORDS` does, with a progress bar and without leaving this process.

    The folder is that of the command, runs/DATE/TIME if `hydra.run.dir` says nothing else, with the same files; where
    it holds the finished run already, nothing is computed again, and an interrupted one is resumed.

    Args:
        words: `key=value`, as behind the command: "shots=4", "method=coop", "hydra.run.dir=runs/mine".
        config_dir: a folder of your own configs, the command's --config-dir.

    Raises:
        CoopError: whatever the command ends with as a message.
        KeyboardInterrupt: it was interrupted; called again with the same hydra.run.dir, it resumes.
    """
    with undisturbed(words):
        overrides = _overrides(words, config_dir)
        with initialize_config_dir(str(conf_dir()), job_name="train", version_base="1.3"):
            hydra = GlobalHydra.instance().hydra
            _check_one_run(hydra, overrides)
            folder, accelerator = _train(hydra, overrides)
    return load_run(folder, accelerator, config_dir)


def composed(words: Sequence[str]) -> DictConfig:
    """The checked config that these words behind `python -m coop.train` make. Raises CoopError."""
    cfg = compose_training(words)
    check_training(cfg)
    _check_one_process(cfg)
    return cfg


@contextmanager
def undisturbed(words: Sequence[str]) -> Iterator[None]:
    """Let a command with these words leave no trace in this process; its messages are errors here.

    Raises:
        CoopError: whatever the command ends with as a message.
        KeyboardInterrupt: Ctrl-C, which Lightning ends the process at.
    """
    with _command_line(words), _errors(), _interrupts(), _random_numbers(), quiet_lightning(), freed_memory_kept():
        yield


@contextmanager
def _random_numbers() -> Iterator[None]:
    states = isolate_rng()
    states.__enter__()
    try:
        yield
    finally:  # which it does not do itself where there is an exception
        states.__exit__(None, None, None)


def _train(hydra: Hydra, overrides: list[str]) -> tuple[Path, str]:
    """The run's folder and its accelerator."""
    done, failed = [], []

    def job(cfg: DictConfig) -> None:
        try:
            check_training(cfg)
            importlib.import_module("coop.train").main(cfg, show=False)
            done.append((Path(HydraConfig.get().runtime.output_dir), cfg.trainer.accelerator))
        except Exception as error:  # Hydra would print a line of its own
            failed.append(error)

    hydra.run("train", job, overrides, with_log_configuration=False)
    if failed:
        raise failed[0]
    return done[0]


def _overrides(words: Sequence[str], config_dir: str | None) -> list[str]:
    for word in words:
        if word.startswith("-"):
            instead = "give config_dir=DIR to coop.run" if word.startswith(("--config-dir", "-cd")) else ONE
            raise CoopError(f"{word}: expected key=value; {instead}")
    if config_dir is None:
        return as_overrides(words)
    folder = Path(config_dir).expanduser().absolute()
    if not folder.is_dir():
        raise CoopError(f"config_dir={config_dir}: no such folder")
    return [*as_overrides(words), f"hydra.searchpath=[{quoted(f'file://{folder}')}]"]


def _check_one_run(hydra: Hydra, overrides: list[str]) -> None:
    """Raises CoopError where the command would run a sweep."""
    for override in OverridesParser.create().parse_overrides(overrides):
        if override.is_sweep_override():
            raise CoopError(f"{override.input_line}: several values; {ONE}")
    cfg = hydra.compose_config("train", overrides, run_mode=RunMode.RUN, with_log_configuration=False)
    check_one_run(cfg.hydra, "train", ONE)
    _check_one_process(cfg)


def _check_one_process(cfg: DictConfig) -> None:
    for key in ("devices", "num_nodes"):
        if str(cfg.trainer[key]) != "1":  # Lightning would start this program again, once for each
            raise CoopError(f"trainer.{key}={cfg.trainer[key]}: here is one process; use python -m coop.train")


@contextmanager
def _command_line(words: Sequence[str]) -> Iterator[None]:
    """Let messages quote these words, as the command's do."""
    before, sys.argv = sys.argv, ["coop.train", *words]
    try:
        yield
    finally:
        sys.argv = before


@contextmanager
def _errors() -> Iterator[None]:
    """What a user can fix as a CoopError with the command's message."""
    try:
        yield
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        raise CoopError(message) from error


@contextmanager
def _interrupts() -> Iterator[None]:
    """Lightning ends the process at Ctrl-C, and ignores it from then on."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as end:
        raise KeyboardInterrupt from end
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)
