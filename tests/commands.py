"""The commands, run as processes of their own, without paying the seconds of imports for each.

A fork server imports the package once; every command is then a fork of it: a real process with its own working
folder, environment, output and exit code, which can be killed. What it runs is what `python -m coop.train` runs.
A few tests start the interpreter as a user does instead (`interpreter`).
"""

import importlib
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from typing import NamedTuple

FORK_SERVER = multiprocessing.get_context("forkserver")
FORK_SERVER.set_forkserver_preload(["preloaded"])
TIMEOUT = 300  # seconds; a command takes one to twenty


class Finished(NamedTuple):
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one message that a user reads; fails if there is none, or a traceback."""
        assert "Traceback" not in self.err, self.err
        assert self.err.count("\nerror: ") == 1, self.err
        return self.err.partition("\nerror: ")[2]


class Commands:
    """Starts commands in `folder` with the environment `env`, by `target`, which takes what `run_command` does."""

    def __init__(self, folder: Path, env: dict[str, str], target: Callable | None = None):
        self.folder, self.env, self.target, self.count = folder, env, target or run_command, 0

    def start(self, command: str, *args: str, **env: str) -> multiprocessing.Process:
        """A running command; `finish` waits for it."""
        self.count += 1
        files = [self.folder / f"{self.count}.{stream}" for stream in ("out", "err")]
        arguments = (command, args, self.folder, self.env | env, *files)
        start_fork_server()
        process = FORK_SERVER.Process(target=self.target, args=arguments)
        process.start()
        process.files = files
        return process

    def finish(self, process: multiprocessing.Process) -> Finished:
        process.join(TIMEOUT)
        if process.exitcode is None:
            process.kill()
            raise TimeoutError(process.files[1].read_text())
        # One that is killed at once has none.
        return Finished(process.exitcode, *(file.read_text() if file.exists() else "" for file in process.files))

    def __call__(self, command: str, *args: str, **env: str) -> Finished:
        return self.finish(self.start(command, *args, **env))

    def interpreter(self, *args: str, **env: str) -> Finished:
        """`python ARGS` as a user starts it."""
        process = subprocess.Popen(
            [sys.executable, *args],
            cwd=self.folder,
            env={**os.environ, **self.env, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=as_in_a_terminal,
        )
        try:
            out, err = process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with the processes that it has started itself
            raise
        return Finished(process.returncode, out, err)


def start_fork_server() -> None:
    """It finds what it is to import beforehand by PYTHONPATH alone."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *filter(None, [before])])
    try:
        forkserver.ensure_running()
    finally:
        os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)


def as_in_a_terminal() -> None:
    """Ctrl-C is not ignored, as it is for what a shell starts in the background: perhaps these tests."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def slow_down(module: str, name: str) -> None:
    """Let a function take a tenth of a second longer."""
    home = importlib.import_module(module)
    function = getattr(home, name)

    def slowly(*args, **kwargs):
        time.sleep(0.1)
        return function(*args, **kwargs)

    setattr(home, name, slowly)


def run_command(command: str, args: tuple[str, ...], folder: Path, env: dict[str, str], out: Path, err: Path) -> None:
    as_in_a_terminal()
    if env.get("COOP_TEST_IGNORE_SIGINT"):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.chdir(folder)
    os.environ.update(env)
    for stream, file in ((1, out), (2, err)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    sys.stdout, sys.stderr = (open(stream, "w", buffering=1, closefd=False) for stream in (1, 2))  # noqa: SIM115
    # Otherwise data-loader workers would inherit the fork server's way of starting, and import everything again.
    multiprocessing.set_start_method("fork", force=True)
    importlib.import_module("torch").set_num_threads(1)
    # Lightning reads it when it is imported, which the fork server has done.
    importlib.import_module("pytorch_lightning").utilities.rank_zero_only.rank = int(env.get("LOCAL_RANK", 0))
    if report := env.get("COOP_TEST_PRETEND"):
        seen = importlib.import_module("pretend_device").install()
    if gpus := env.get("COOP_TEST_GPUS"):
        importlib.import_module("coop.cli.gpus").visible_gpus = lambda: gpus.split(",")
    if broken := env.get("COOP_TEST_FAIL"):
        where, _, name = broken.rpartition(".")
        setattr(importlib.import_module(where), name, lambda *_, **__: os._exit(9))
    if env.get("COOP_TEST_PLAIN"):  # no pictures, a third of a small run's time, and a few of PromptSRC's templates
        plots = importlib.import_module("coop.evaluation.plots")
        plots.draw_history = plots.draw_per_class = lambda *_: None
        promptsrc = importlib.import_module("coop.methods.promptsrc")
        promptsrc.clip_templates = lambda _, templates=promptsrc.clip_templates: templates(7)
    if slow := env.get("COOP_TEST_SLOW"):
        slow_down(*slow.rsplit(".", 1))
    sys.path.insert(0, str(folder))  # as `python -m` does
    sys.argv = [f"{command}.py", *args]
    warnings.simplefilter("ignore", RuntimeWarning)  # runpy's: the fork server has imported the module already
    try:
        runpy.run_module(f"coop.{command}", run_name="__main__")
    finally:
        if report:
            seen.write(Path(report))
