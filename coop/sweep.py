"""Many runs in one folder: each cell once, a failure recorded and the others going on, a table at the end."""

import logging
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig
from pytorch_lightning.utilities import rank_zero_only
from rich.console import Console

from coop.errors import CoopError
from coop.files import remove_leftovers, write_atomically
from coop.results import RESULTS

log = logging.getLogger("coop")

ERROR, LOCK = "error.txt", ".lock"
POLL_SECONDS = 0.5
# A sweeper with one of these keys chooses the next runs by what the last ones returned (Optuna, Nevergrad, Ax).
SEARCHING = ("direction", "optim", "ax_config")

# Words of Optuna and of submitit, and what they mean here.
PLUGINS_SAY = {
    "No trials are completed": "no run of this search finished; what each failed with stands above",
    'Could not detect "srun"': "hydra/launcher=slurm: no SLURM here (no srun); start it on a login node",
}


class BusyError(CoopError):
    """Another process is computing this run."""


class HopelessError(CoopError):
    """Something that no other cell of the sweep would get around."""


class ComeBack(BaseException):
    """Some cells had been left to other processes, which have ended without finishing them.

    Not an Exception: Hydra turns those of a callback into warnings.
    """

    def __init__(self, cells: Sequence[Path]):
        super().__init__(", ".join(map(str, cells)))
        self.cells = list(cells)


@contextmanager
def exclusive(run_dir: Path) -> Iterator[None]:
    """Hold a run's folder for this process; the lock goes with the process, however it ends.

    Raises:
        BusyError: another process holds it.
    """
    if rank_zero_only.rank:  # the other processes of a distributed run work under their first one's lock
        yield
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(run_dir / LOCK, timeout=0):
            _remove_leftovers(run_dir)
            yield
    except Timeout:
        raise BusyError(f"{run_dir}: another process is computing this run") from None


def _remove_leftovers(run_dir: Path) -> None:
    """What a process that was killed while it wrote a file had written so far; the lock keeps all others out."""
    remove_leftovers(run_dir)


def in_sweep() -> bool:
    """Whether this is one run of a multirun."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def in_search() -> bool:
    """Whether this is one run of a search, whose sweeper goes by the value that runs return."""
    return in_sweep() and is_search(HydraConfig.get())


def is_search(hydra: DictConfig) -> bool:
    """The same of a config's `hydra` node."""
    return any(key in hydra.sweeper for key in SEARCHING)


def check_search(has_validation: bool) -> None:
    """Refuse a search over a data set that has no validation images: it would have to look at the test set.

    Raises:
        HopelessError: this is one run of a search, and there is no validation accuracy.
    """
    if in_search() and not has_validation:
        raise HopelessError(
            "a search goes by the accuracy on validation images, and this data set has none: choose one that has, or "
            "set a part of the training images aside (a folder val/ of dataset=folder)"
        )


def sweep_name() -> str | None:
    """The name of the sweep's folder, where this is one run of a multirun."""
    return Path(HydraConfig.get().sweep.dir).name if in_sweep() else None


def run_cell(task: Callable[[DictConfig], float | None], cfg: DictConfig, explain: Callable) -> float | None:
    """Run one cell of a sweep; what goes wrong is written into its folder and the sweep goes on.

    A cell that another process computes is left to it; a search, which needs its value, waits.
    """
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    _mark(run_dir)
    _leave_loky()
    try:
        value = _when_free(task, cfg, run_dir) if in_search() else task(cfg)
        check_search(value is not None)
    except BusyError as busy:
        log.info("%s; left to it", busy)
        return None
    except HopelessError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        sys.exit(1)
    except Exception as error:
        message = explain(error) or traceback.format_exc()
        log.error("%s: %s", run_dir, message)
        write_atomically(run_dir / ERROR, f"{message}\n".encode())
        return None
    (run_dir / ERROR).unlink(missing_ok=True)
    return value


def _leave_loky() -> None:
    """Let data loaders start their processes in the platform's way: from a worker of joblib they would in joblib's."""
    if multiprocessing.get_start_method(allow_none=True) == "loky":
        multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)


def _when_free(task: Callable[[DictConfig], float | None], cfg: DictConfig, run_dir: Path) -> float | None:
    while True:
        try:
            return task(cfg)
        except BusyError:
            wait_for([run_dir])


def run_to_the_end(start: Callable[[], None]) -> None:
    """Start a sweep, and start it again where cells were left to other processes that did not finish them.

    Raises:
        CoopError: cells that neither finish nor fail, however often; what a plugin of Hydra says that a user can mend.
    """
    before = None
    while True:
        try:
            return start()
        except ComeBack as left:
            if left.cells == before:
                listed = "\n".join(f"  {cell}" for cell in left.cells)
                raise CoopError(f"neither finished nor failed; start the same command again\n{listed}") from None
            before = left.cells
        except (ValueError, RuntimeError) as error:
            for words, meaning in PLUGINS_SAY.items():
                if words in str(error):
                    raise CoopError(meaning) from error
            raise


def wait_for(cells: Sequence[Path]) -> None:
    """Come back when no process holds one of these folders any more."""
    for cell in cells:
        while _is_busy(cell):
            time.sleep(POLL_SECONDS)


def _is_busy(cell: Path) -> bool:
    try:
        with FileLock(cell / LOCK, timeout=0):
            return False
    except Timeout:
        return True


def _mark(cell: Path) -> None:
    """Say that a sweep has come to this cell."""
    cell.mkdir(parents=True, exist_ok=True)
    (cell / LOCK).touch()


class SweepSummary(Callback):
    """Hydra callback: a table at the end of a sweep, what is finished and what failed; the exit code tells too."""

    def __init__(self) -> None:
        self.started = 0.0

    def on_multirun_start(self, config: DictConfig, **_) -> None:
        folder = Path(config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:  # the clock of the disk that the cells are marked on
            self.started = os.fstat(file.fileno()).st_mtime

    def on_multirun_end(self, config: DictConfig, **_) -> None:
        if rank_zero_only.rank:  # the other processes of distributed runs go through the same sweep
            return
        folder = Path(config.hydra.sweep.dir)
        cells = sorted(lock.parent for lock in folder.rglob(LOCK) if lock.stat().st_mtime >= self.started)
        console = Console(stderr=True)
        _await_others(cells, console)
        failed = {cell: text for cell in cells if (text := _error(cell))}
        finished = [cell for cell in cells if cell not in failed and (cell / RESULTS).exists()]
        left = [cell for cell in cells if cell not in failed and not (cell / RESULTS).exists()]
        if left and not is_search(config.hydra):
            raise ComeBack(left)
        if len(finished) > 1:
            show_report(folder)
        failed |= dict.fromkeys(left, "not finished")
        count = f"{len(finished)} of {len(cells)} runs finished, {len(failed)} failed"
        console.print(f"\n{folder}: {count}", highlight=False, markup=False, soft_wrap=True)
        for cell, text in failed.items():
            console.print(
                f"failed: {cell.relative_to(folder)}\n    {text}", highlight=False, markup=False, soft_wrap=True
            )
        if failed or not cells:
            sys.exit(1)


def show_report(folder: Path) -> None:
    """The report of a sweep; whatever is wrong with it does not change what the sweep has done."""
    from coop.report import report  # brings matplotlib

    try:
        report([folder])
    except Exception as error:
        print(f"no report: {error}; `python -m coop.report {folder}` tries again", file=sys.stderr)


def _error(cell: Path) -> str | None:
    """The last line of what a cell failed with, if it failed."""
    try:
        return (cell / ERROR).read_text(errors="replace").strip().rpartition("\n")[2] or "unknown"
    except FileNotFoundError:
        return None


def _await_others(cells: Sequence[Path], console: Console) -> None:
    """Wait for the processes that compute cells of this sweep beside this one."""
    busy = [cell for cell in cells if not (cell / RESULTS).exists() and _is_busy(cell)]
    if busy:
        console.print(f"waiting for {len(busy)} runs that other processes compute", highlight=False)
        wait_for(busy)
