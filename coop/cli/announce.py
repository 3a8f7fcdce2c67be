"""What Hydra's start and end of a command mean for a user: how to resume it, and what a sweep has done."""

import os
import shlex
import sys
import tempfile
from pathlib import Path

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich.console import Console

from coop.runs.sweep import Standing, standing
from coop.system import stop


class Announce(Callback):
    """Hydra callback: how to resume what is stopped; at the end of a sweep its report and how far its runs are.

    The exit code is 1 where runs failed or are unfinished, or none is finished.
    """

    started = 0.0  # a sweep, by the clock of its disk

    def on_run_start(self, config: DictConfig, **_) -> None:
        stop.advise(to_resume(config.hydra, "run"))

    def on_multirun_start(self, config: DictConfig, **_) -> None:
        stop.advise(to_resume(config.hydra, "sweep"))
        folder = Path(config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            self.started = os.fstat(file.fileno()).st_mtime

    def on_multirun_end(self, config: DictConfig, **_) -> None:
        from pytorch_lightning.utilities import rank_zero_only  # which the runs have imported

        if rank_zero_only.rank:  # the other processes of distributed runs go through the same sweep
            return
        folder = Path(config.hydra.sweep.dir)
        found = standing(folder, self.started)
        if len(found.finished) > 1 and not found.elsewhere:  # otherwise the last process writes it, of all runs
            show_report(folder)
        console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
        console.print("\n" + "\n".join(summary(folder, found)))
        if found.unfinished:
            console.print(to_resume(config.hydra, "sweep"))
        if found.failed or found.unfinished or not found.finished:
            sys.exit(1)


def to_resume(hydra: DictConfig, kind: str) -> str:
    """How to go on where a "run" or a "sweep" with this `hydra` node of its config ends."""
    key, words = f"hydra.{kind}.dir", sys.argv[1:]
    if not any(word.startswith(f"{key}=") for word in words):
        words = [*words, f"{key}={hydra[kind].dir}"]
    return f"to resume:\n  {shlex.join(['python', '-m', f'coop.{hydra.job.name}', *words])}"


def summary(folder: Path, found: Standing) -> list[str]:
    """How many runs are finished, and why each of the others is not; a line each."""
    total = sum(map(len, (found.finished, found.failed, found.elsewhere, found.unfinished)))
    count = f"{len(found.finished)} of {total} runs finished, {len(found.failed)} failed"
    if found.elsewhere:
        count += f", {len(found.elsewhere)} still running in another process"
    lines = [f"{folder}: {count}"]
    stopped_by: dict[str, list[Path]] = {}
    for run, message in found.failed.items():
        stopped_by.setdefault(message, []).append(run)
    for message, runs in stopped_by.items():
        lines += [f"failed: {run.relative_to(folder)}" for run in runs[:3]]
        lines += [f"failed: {len(runs) - 3} more"] if len(runs) > 3 else []
        lines.append(f"    {message}")
    lines += [f"still running: {run.relative_to(folder)}" for run in found.elsewhere]
    return lines + [f"not finished: {run.relative_to(folder)}" for run in found.unfinished]


def show_report(folder: Path) -> None:
    """The report of a sweep; whatever is wrong with it does not change what the sweep has done."""
    from coop.report import report  # brings matplotlib

    try:
        report([folder])
    except Exception as error:
        print(f"no report: {error}; `python -m coop.report {folder}` tries again", file=sys.stderr)
