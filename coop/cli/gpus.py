"""A study on a machine with several GPUs: one run on each of them at a time.

Each run has a process of its own, which sees one GPU and writes into `log.txt` of its folder.
"""

import importlib
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

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
    def folder(self) -> Path:
        return Path(self.config.hydra.sweep.dir) / self.name


def wants_one_gpu(config: DictConfig) -> bool:
    """Whether a run is for one GPU, of coop.train's config or of coop.evaluate's."""
    trainer = config.get("trainer") or {"accelerator": config.get("accelerator"), "devices": 1, "num_nodes": 1}
    one = str(trainer["devices"]) == str(trainer["num_nodes"]) == "1"
    return one and trainer["accelerator"] in ("auto", "gpu", "cuda")


def visible_gpus() -> list[str]:
    """What each GPU is called in CUDA_VISIBLE_DEVICES."""
    # Counted in a process of its own: one in which CUDA has started cannot fork.
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = _fork(_count_gpus, theirs)
    theirs.close()
    try:
        count = ours.recv()
    except EOFError:
        count = 0
    process.join()
    names = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
    return names.split(",")[:count]


def _count_gpus(connection: Connection) -> None:
    import torch

    connection.send(torch.cuda.device_count())


def _fork(target: Callable[..., None], *args: Any) -> BaseProcess:
    # Forked: nothing is imported again, and what Hydra has composed need not be pickled.
    process = multiprocessing.get_context("fork").Process(target=target, args=args)
    process.start()
    return process


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
                    self._start(waiting.popleft())
                for connection in wait(list(self.running)):
                    job, result = self._finish(connection)
                    done[job.number] = result
                    _say(f"{job.name}: ended, {len(done)} of {len(jobs)}")
        finally:
            self._stop_all()
        return [done[job.number] for job in jobs]

    def _start(self, job: Job) -> None:
        gpu = self.free.popleft()
        _say(f"{job.name}: started on GPU {gpu}, output in {job.folder / LOG}")
        ours, theirs = multiprocessing.Pipe(duplex=False)
        process = _fork(self._in_child, job, gpu, theirs, os.getpid())
        theirs.close()  # the child's end alone stays open: the pipe ends with the process
        self.running[ours] = job, gpu, process

    def _in_child(self, job: Job, gpu: str, connection: Connection, parent: int) -> None:
        _end_with(parent)
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
        _write_into(job.folder / LOG)
        connection.send(self._run(job).return_value)

    def _finish(self, connection: Connection) -> tuple[Job, JobReturn]:
        job, gpu, process = self.running.pop(connection)
        try:
            value = connection.recv()
        except EOFError:  # it has ended without a result
            value = None
        process.join()
        self.free.append(gpu)
        if process.exitcode > 0:  # what stops one run by intention stops all
            _say(_last_message(job.folder / LOG))
            raise SystemExit(process.exitcode)
        if process.exitcode < 0:
            _record_death(job, signal.Signals(-process.exitcode).name)
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


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _last_message(log: Path) -> str:
    """What a process said last that a user can fix."""
    found = log.read_text(errors="replace").rpartition("\nerror: ")[2].strip()
    return f"\nerror: {found or log}"


def _record_death(job: Job, name: str) -> None:
    cause = " (the machine may have been out of memory)" if name == "SIGKILL" else ""
    record_failure(job.folder, f"its process was killed by {name}{cause}; output in {job.folder / LOG}")


def _end_with(parent: int) -> None:
    """Let the system stop this process where its parent ends without having stopped it (SIGKILL)."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)
