"""A study on a machine with several GPUs: one run on each of them at a time.

Each run has a process of its own, which sees one GPU and writes into `log.txt` of its folder. Processes are forked:
nothing is imported again, and what Hydra has composed need not be pickled.
"""

import ctypes
import importlib
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig

from coop.runs import LOG
from coop.runs.sweep import record_failure

SECONDS_TO_STOP = 30


@dataclass
class Job:
    """One run of a sweep."""

    number: int
    overrides: list[str]
    config: DictConfig

    @property
    def name(self) -> str:
        return str(self.config.hydra.sweep.subdir)

    @property
    def log(self) -> Path:
        return Path(self.config.hydra.sweep.dir, self.name, LOG)


def wants_one_gpu(config: DictConfig) -> bool:
    """Whether a run is for one GPU, of coop.train's config or of coop.evaluate's."""
    trainer = config.get("trainer") or {"accelerator": config.get("accelerator"), "devices": 1, "num_nodes": 1}
    one = str(trainer["devices"]) == str(trainer["num_nodes"]) == "1"
    return one and trainer["accelerator"] in ("auto", "gpu", "cuda")


def visible_gpus() -> list[str]:
    """What each GPU is called in CUDA_VISIBLE_DEVICES."""
    count = 0
    # Counted in a process of its own: one in which CUDA has started cannot fork.
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as process, suppress(BrokenProcessPool):
        count = process.submit(_count_gpus).result()
    names = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
    return names.split(",")[:count]


def _count_gpus() -> int:
    import torch

    return torch.cuda.device_count()


class Pool:
    """Processes that share out GPUs: as many runs at a time, the next one where one has ended."""

    def __init__(self, gpus: Sequence[str], run: Callable[[Job], JobReturn]):
        self.free, self._run = deque(gpus), run
        self.running: dict[Connection, tuple[Job, str, BaseProcess]] = {}

    def run(self, jobs: Sequence[Job]) -> list[JobReturn]:
        """Run all; their results in the order of `jobs`."""
        with suppress(ImportError):  # the command: once, rather than in each process
            importlib.import_module(f"coop.{jobs[0].config.hydra.job.config_name}")
        waiting, done = deque(jobs), {}
        try:
            while waiting or self.running:
                while waiting and self.free:
                    self._start(waiting.popleft(), self.free.popleft())
                for connection in wait(list(self.running)):
                    job, result = self._finish(connection)
                    done[job.number] = result
                    print(f"{job.name}: ended, {len(done)} of {len(jobs)}", file=sys.stderr)
        finally:
            self._stop_all()
        return [done[job.number] for job in jobs]

    def _start(self, job: Job, gpu: str) -> None:
        print(f"{job.name}: started on GPU {gpu}, output in {job.log}", file=sys.stderr)
        ours, theirs = multiprocessing.Pipe(duplex=False)
        arguments = (job, gpu, theirs, os.getpid())
        process = multiprocessing.get_context("fork").Process(target=self._in_child, args=arguments)
        process.start()
        theirs.close()  # the child's end alone stays open: the pipe ends with the process
        self.running[ours] = job, gpu, process

    def _in_child(self, job: Job, gpu: str, connection: Connection, parent: int) -> None:
        _end_with(parent)
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
        _write_into(job.log)
        connection.send(self._run(job).return_value)

    def _finish(self, connection: Connection) -> tuple[Job, JobReturn]:
        job, gpu, process = self.running.pop(connection)
        value = None
        with suppress(EOFError):  # it has ended without a result
            value = connection.recv()
        process.join()
        self.free.append(gpu)
        if process.exitcode > 0:  # what stops one run by intention stops all
            said = job.log.read_text(errors="replace").rpartition("\nerror: ")[2].strip()
            print(f"\nerror: {said or job.log}", file=sys.stderr)
            raise SystemExit(process.exitcode)
        if process.exitcode < 0:
            name = signal.Signals(-process.exitcode).name
            cause = " (the machine may have been out of memory)" if name == "SIGKILL" else ""
            record_failure(job.log.parent, f"its process was killed by {name}{cause}; output in {job.log}")
        return job, JobReturn(overrides=job.overrides, cfg=job.config, _return_value=value, status=JobStatus.COMPLETED)

    def _stop_all(self) -> None:
        processes = [process for _, _, process in self.running.values()]
        for process in processes:
            process.terminate()
        for process in processes:
            process.join(SECONDS_TO_STOP)
            process.kill()


def _write_into(log: Path) -> None:
    """Let this process, and those that it starts, write into a file instead of the terminal that all runs share."""
    log.parent.mkdir(parents=True, exist_ok=True)
    file = open(log, "a", buffering=1)  # noqa: SIM115  as long as the process
    for descriptor in (1, 2):
        os.dup2(file.fileno(), descriptor)
    sys.stdout = sys.stderr = file


def _end_with(parent: int) -> None:
    """Let the system stop this process where its parent ends without having stopped it (SIGKILL)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)
