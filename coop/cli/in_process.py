"""coop.run: what `python -m coop.train` does, within this process."""

import importlib
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
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
from coop.system.memory import keep_freed_memory

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
    with undisturbed(words), initialize_config_dir(str(conf_dir()), job_name="train", version_base="1.3"):
        overrides = _overrides(words, config_dir)
        hydra = GlobalHydra.instance().hydra
        cfg = hydra.compose_config("train", overrides, run_mode=RunMode.RUN, with_log_configuration=False)
        check_one_run(cfg.hydra, "train", ONE)
        _check_one_process(cfg)
        done = hydra.run("train", _train, overrides, with_log_configuration=False)
        if done.return_value is not None:
            raise done.return_value
    return load_run(Path(done.hydra_cfg.hydra.runtime.output_dir), cfg.trainer.accelerator, config_dir)


def composed(words: Sequence[str]) -> DictConfig:
    """The checked config that these words behind `python -m coop.train` make. Raises CoopError."""
    cfg = compose_training(words)
    check_training(cfg)
    _check_one_process(cfg)
    return cfg


@contextmanager
def undisturbed(words: Sequence[str]) -> Iterator[None]:
    """Let a command with these words, which messages quote, leave no trace in this process.

    Raises:
        CoopError: whatever the command ends with as a message.
        KeyboardInterrupt: Ctrl-C, at which Lightning ends the process.
    """
    argv, on_ctrl_c, random_numbers = sys.argv, signal.getsignal(signal.SIGINT), isolate_rng()
    random_numbers.__enter__()
    sys.argv = ["coop.train", *words]
    keep_freed_memory()
    try:
        with quiet_lightning():
            yield
    except SystemExit as end:
        raise KeyboardInterrupt from end
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        raise CoopError(message) from error
    finally:
        keep_freed_memory(False)
        sys.argv = argv
        random_numbers.__exit__(None, None, None)  # which it does not do itself where there is an exception
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, on_ctrl_c)  # Lightning ignores it from its first on


def _train(cfg: DictConfig) -> Exception | None:
    """Run a config; what it fails with is returned, since Hydra prints a line about what is raised."""
    try:
        check_training(cfg)
        importlib.import_module("coop.train").main(cfg, show=False)
    except Exception as error:
        return error


def _overrides(words: Sequence[str], config_dir: str | None) -> list[str]:
    """The words as Hydra takes them. Raises CoopError for those of a study."""
    for word in words:
        if word.startswith("-"):
            instead = "give config_dir=DIR to coop.run" if word.startswith(("--config-dir", "-cd")) else ONE
            raise CoopError(f"{word}: expected key=value; {instead}")
    overrides = as_overrides(words)
    for override in OverridesParser.create().parse_overrides(overrides):
        if override.is_sweep_override():
            raise CoopError(f"{override.input_line}: several values; {ONE}")
    if config_dir is None:
        return overrides
    folder = Path(config_dir).expanduser().absolute()
    if not folder.is_dir():
        raise CoopError(f"config_dir={config_dir}: no such folder")
    return [*overrides, f"hydra.searchpath=[{quoted(f'file://{folder}')}]"]


def _check_one_process(cfg: DictConfig) -> None:
    for key in ("devices", "num_nodes"):
        if str(cfg.trainer[key]) != "1":  # Lightning would start this program again, once for each
            raise CoopError(f"trainer.{key}={cfg.trainer[key]}: here is one process; use python -m coop.train")
