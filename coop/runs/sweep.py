"""Many runs in one folder: each computed once, a failure recorded and the others going on."""

import logging
import multiprocessing
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from coop.errors import CoopError
from coop.runs import ERROR, LOCK, RESULTS
from coop.system import stop
from coop.system.files import remove_leftovers, write_atomically

log = logging.getLogger("coop")

# A sweeper with one of these keys chooses the next runs by what the last ones returned (Optuna, Nevergrad, Ax).
SEARCHING = ("direction", "optim", "ax_config")


class BusyError(CoopError):
    """Another process is computing this run."""


class HopelessError(CoopError):
    """Something that stops every other run of the sweep as well."""


@contextmanager
def exclusive(run_dir: Path) -> Iterator[None]:
    """Hold a run's folder for this process, or raise BusyError; the lock goes with the process, however it ends."""
    from pytorch_lightning.utilities import rank_zero_only

    if rank_zero_only.rank:  # the other processes of a distributed run work under their first one's lock
        yield
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(run_dir / LOCK, timeout=0):
            remove_leftovers(run_dir)  # of a process that was killed; the lock keeps all others out
            yield
    except Timeout:
        raise BusyError(f"{run_dir}: another process is computing this run") from None


def in_sweep() -> bool:
    """Whether this is one run of a multirun."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def check_search(has_validation: bool) -> None:
    """Raises HopelessError in a search without validation images: it would have to look at the test set."""
    if in_sweep() and any(key in HydraConfig.get().sweeper for key in SEARCHING) and not has_validation:
        raise HopelessError(
            "a search goes by the accuracy on validation images, and this data set has none: choose one that has, or "
            "set a part of the training images aside (a folder val/ of dataset=folder)"
        )


def sweep_name() -> str | None:
    """The name of the sweep's folder, where this is one run of a multirun."""
    return Path(HydraConfig.get().sweep.dir).name if in_sweep() else None


def run_setting(task: Callable[[DictConfig], float | None], cfg: DictConfig, explain: Callable) -> float | None:
    """Run one run of a sweep; what goes wrong is written into its folder and the sweep goes on.

    A run that another process computes is skipped.
    """
    if stop.received():
        raise stop.Stopped
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / LOCK).touch()  # says that the sweep has come to this run
    _leave_loky()
    try:
        value = task(cfg)
        check_search(value is not None)
    except BusyError as busy:
        log.info("%s; skipped", busy)
        return None
    except HopelessError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        sys.exit(1)
    except Exception as error:
        if stop.received():  # it has not failed
            raise
        message = explain(error) or traceback.format_exc()
        log.error("%s: %s", run_dir, message)
        record_failure(run_dir, message)
        return None
    (run_dir / ERROR).unlink(missing_ok=True)
    return value


def record_failure(run_dir: Path, message: str) -> None:
    """Write down what a run failed with, for the end of the sweep."""
    write_atomically(run_dir / ERROR, f"{message}\n".encode())


def _leave_loky() -> None:
    """Let data loaders start their processes in the platform's way: from a worker of joblib they would in joblib's."""
    if multiprocessing.get_start_method(allow_none=True) == "loky":
        multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)


@dataclass
class Standing:
    """How far the runs are that a sweep has come to."""

    finished: list[Path] = field(default_factory=list)
    failed: dict[Path, str] = field(default_factory=dict)  # the last line of what each failed with
    elsewhere: list[Path] = field(default_factory=list)  # another process computes them
    unfinished: list[Path] = field(default_factory=list)


def standing(folder: Path, since: float) -> Standing:
    """How far the runs beneath a folder are that a process has come to since a time of the disk's clock."""
    found = Standing()
    for run_dir in sorted(lock.parent for lock in folder.rglob(LOCK) if lock.stat().st_mtime >= since):
        if _is_busy(run_dir):
            found.elsewhere.append(run_dir)
        elif (message := _failure(run_dir)) is not None:
            found.failed[run_dir] = message
        else:
            (found.finished if (run_dir / RESULTS).exists() else found.unfinished).append(run_dir)
    return found


def _is_busy(run_dir: Path) -> bool:
    try:
        with FileLock(run_dir / LOCK, timeout=0):
            return False
    except Timeout:
        return True


def _failure(run_dir: Path) -> str | None:
    try:
        return (run_dir / ERROR).read_text(errors="replace").strip().rpartition("\n")[2] or "unknown"
    except FileNotFoundError:
        return None
