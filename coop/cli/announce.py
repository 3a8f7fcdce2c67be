"""What Hydra's start and end of a command mean for a user: how to resume it, and what a sweep has done."""

import os
import sys
import tempfile
from pathlib import Path

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich.console import Console

from coop.runs.sweep import Standing, standing
from coop.system import stop


class Announce(Callback):
    """Hydra callback: how to resume what is stopped; at the end of a sweep its report and what is finished, failed or
    skipped. The exit code is 0 if all runs are finished.
    """

    def __init__(self) -> None:
        self.started = 0.0

    def on_run_start(self, config: DictConfig, **_) -> None:
        stop.advise(to_resume(config, "hydra.run.dir", config.hydra.run.dir))

    def on_multirun_start(self, config: DictConfig, **_) -> None:
        folder = Path(config.hydra.sweep.dir)
        stop.advise(to_resume(config, "hydra.sweep.dir", folder))
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:  # the clock of the disk that the runs' locks are on
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
        if found.elsewhere or found.unfinished:
            console.print(to_resume(config, "hydra.sweep.dir", folder))
        if found.failed or found.elsewhere or found.unfinished or not found.finished:
            sys.exit(1)


def to_resume(config: DictConfig, key: str, folder: str | Path) -> str:
    """The command line that goes on where this one ends."""
    return stop.to_resume(sys.argv[1:], config.hydra.job.name, key, str(folder))


def summary(folder: Path, found: Standing) -> list[str]:
    """How many runs are finished, and why each of the others is not; a line each."""
    others = len(found.failed) + len(found.elsewhere) + len(found.unfinished)
    count = f"{len(found.finished)} of {len(found.finished) + others} runs finished, {len(found.failed)} failed"
    if skipped := len(found.elsewhere):
        count += f", {skipped} skipped: another process is computing {'it' if skipped == 1 else 'them'}"
    return [
        f"{folder}: {count}",
        *_failed(folder, found),
        *(f"skipped: {run.relative_to(folder)}" for run in found.elsewhere),
        *(f"not finished: {run.relative_to(folder)}" for run in found.unfinished),
    ]


def _failed(folder: Path, found: Standing) -> list[str]:
    """What failed: each message once, below the runs that it stopped, of which the first three are named."""
    runs: dict[str, list[str]] = {}
    for run, message in found.failed.items():
        runs.setdefault(message, []).append(str(run.relative_to(folder)))
    lines = []
    for message, names in runs.items():
        more = [f"failed: {len(names) - 3} more"] if len(names) > 3 else []
        lines += [*(f"failed: {name}" for name in names[:3]), *more, f"    {message}"]
    return lines


def show_report(folder: Path) -> None:
    """The report of a sweep; whatever is wrong with it does not change what the sweep has done."""
    from coop.report import report  # brings matplotlib

    try:
        report([folder])
    except Exception as error:
        print(f"no report: {error}; `python -m coop.report {folder}` tries again", file=sys.stderr)
