"""Many runs in one folder: each cell once, a failure recorded and the others going on, a summary at the end."""

import logging
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig
from pytorch_lightning.utilities import rank_zero_only
from rich.console import Console
from rich.table import Table

from coop.errors import CoopError
from coop.files import write_atomically
from coop.results import CONFIG, RESULTS

log = logging.getLogger("coop")

ERROR, LOCK = "error.txt", ".lock"


class BusyError(CoopError):
    """Another process is computing this run."""


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
            yield
    except Timeout:
        raise BusyError(f"{run_dir}: another process is computing this run") from None


def in_sweep() -> bool:
    return HydraConfig.get().mode == RunMode.MULTIRUN


def run_cell(task: Callable[[DictConfig], float | None], cfg: DictConfig, explain: Callable) -> float | None:
    """Run one cell of a sweep; what goes wrong is written into its folder and the sweep goes on."""
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    try:
        value = task(cfg)
    except BusyError as busy:
        log.info("%s; left to it", busy)
        return None
    except Exception as error:
        message = explain(error) or traceback.format_exc()
        write_atomically(run_dir / ERROR, f"{message}\n".encode())
        log.error("%s: %s", run_dir, message)
        return None
    (run_dir / ERROR).unlink(missing_ok=True)
    return value


class SweepSummary(Callback):
    """Hydra callback: says at the end of a sweep what is finished and what failed; the exit code tells too."""

    def on_multirun_end(self, config: DictConfig, **_) -> None:
        folder = Path(config.hydra.sweep.dir)
        cells = sorted(path.parent for path in folder.rglob(CONFIG) if path.parent.name != ".hydra")
        failed = [cell for cell in cells if (cell / ERROR).exists()]
        finished = [cell for cell in cells if (cell / RESULTS).exists() and cell not in failed]
        console = Console(stderr=True)
        count = f"{len(finished)} of {len(cells)} runs finished, {len(failed)} failed"
        console.print(f"\n{folder}: {count}", highlight=False)
        if failed:
            table = Table("failed run", "error")
            for cell in failed:
                table.add_row(str(cell.relative_to(folder)), (cell / ERROR).read_text().strip().splitlines()[-1])
            console.print(table)
        console.print(f"python -m coop.report {folder}", highlight=False)
        if failed:
            sys.exit(1)
