"""How coop.train and coop.evaluate start under Hydra."""

import importlib
import logging
import sys
from collections.abc import Callable

import hydra
from omegaconf import DictConfig

from coop.cli.completion import BASH
from coop.cli.ending import exit_code
from coop.cli.messages import explain
from coop.cli.overrides import as_overrides
from coop.config import check, check_evaluation, conf_dir
from coop.runs.sweep import in_sweep, run_setting
from coop.system import stop
from coop.system.memory import keep_freed_memory

# Hydra prints exceptions itself, as shortened tracebacks; here they come to `explain`.
hydra._internal.utils.run_and_report = lambda call: call()

CHECKS = {"train": check, "evaluate": check_evaluation}


def run(command: str) -> None:
    """Run coop.train or coop.evaluate, and exit. Its module is imported once its config has been checked.

    So --help, completion and most mistakes are answered before torch is there.
    """

    def task(cfg: DictConfig) -> float | None:
        CHECKS[command](cfg)
        with stop.importing():
            module = importlib.import_module(f"coop.{command}")
        return module.main(cfg)

    launch(task, command)
    sys.exit()


def launch(task: Callable[[DictConfig], float | None], config_name: str) -> None:
    """Run a task under Hydra; what the user can fix ends as one message and exit code 1."""
    keep_freed_memory()
    logging.raiseExceptions = False  # a log file on a full disk; what matters is said when a result is written

    def job(cfg: DictConfig) -> float | None:
        if not stop.active():  # in a process that a launcher has started
            with stop.stoppable("the sweep's command resumes this run"):
                return job(cfg)
        return run_setting(task, cfg, explain) if in_sweep() else task(cfg)

    def start(words: list[str]) -> int:
        if words == ["-sc", "install=bash"]:
            print(BASH)
            return 0
        sys.argv[1:] = as_overrides(words)
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=config_name)(job)()
        return 0

    with stop.stoppable():
        if code := exit_code(start, sys.argv[1:]):
            sys.exit(code)
