"""A study on several GPUs: one run on each at a time. The GPUs are pretended: a run is told which one it may see."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from hydra.core.hydra_config import HydraConfig
from test_stop import advice, stop_once
from test_sweep import contents

from coop import CoopError
from coop.cli import gpus
from coop.cli.hydra_app import launch

pytestmark = pytest.mark.usefixtures("plain")

SEEDS = "seed=1,2,3,4,5"


def study(monkeypatch, capfd, sweep: Path, task, *words: str, count: int = 3) -> tuple[int, str]:
    """A study of a task that needs no images, in this process; its exit code and what it has said."""
    monkeypatch.setattr(gpus, "visible_gpus", lambda: [f"GPU-{i}" for i in range(count)])
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", *words, f"hydra.sweep.dir={sweep}"])
    try:
        launch(task, "train")
        code = 0
    except SystemExit as end:
        code = end.code
    return code, capfd.readouterr().err


def noting(cfg, together: int = 1) -> float:
    """Write down which GPU it saw, when, and where; ends when so many have begun."""
    folder, start = Path(HydraConfig.get().runtime.output_dir), time.time()
    (folder / "begun").touch()
    while len(list(folder.parent.glob("*/begun"))) < together and time.time() < start + 30:
        time.sleep(0.01)
    if cfg.seed == cfg.shots:
        raise CoopError("seed and shots are the same")
    if cfg.seed == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    seen = {"gpu": os.environ.get("CUDA_VISIBLE_DEVICES"), "pid": os.getpid(), "from": start, "to": time.time()}
    (folder / "results.json").write_text(json.dumps(seen))
    print("said by", cfg.seed)
    return 0.5


@pytest.fixture
def no_report(monkeypatch):
    monkeypatch.setattr("coop.report.report", lambda folders: None)


def seen_in(sweep: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(sweep.rglob("results.json"))]


@pytest.mark.usefixtures("no_report")
def test_each_run_sees_one_gpu_and_shares_it_with_none(monkeypatch, capfd, tmp_path):
    code, err = study(monkeypatch, capfd, tmp_path, partial(noting, together=3), SEEDS)
    assert code == 0, err
    assert "5 of 5 runs finished, 0 failed" in err
    seen = seen_in(tmp_path)
    assert {run["gpu"] for run in seen} == {"GPU-0", "GPU-1", "GPU-2"}
    assert len({run["pid"] for run in seen} | {os.getpid()}) == 6, "each in a process of its own"
    moments = [run["from"] for run in seen]
    at_once = [[run["gpu"] for run in seen if run["from"] <= moment < run["to"]] for moment in moments]
    assert max(map(len, at_once)) == 3
    assert all(len(set(held)) == len(held) for held in at_once)
    assert (tmp_path / "seed=3" / "log.txt").read_text() == "said by 3\n"
    assert "seed=3: started on GPU GPU-2, output in" in err


@pytest.mark.usefixtures("no_report")
def test_runs_that_fail_or_die_free_their_gpu(monkeypatch, capfd, tmp_path):
    """One run fails; the process of another is killed, as the system does that is out of memory."""
    code, err = study(monkeypatch, capfd, tmp_path, noting, "seed=0,1,2,3,4,5", "shots=2", count=2)
    assert code == 1
    assert "4 of 6 runs finished, 2 failed" in err
    assert "failed: seed=2,shots=2\n    seed and shots are the same" in err
    assert "its process was killed by SIGKILL (the machine may have been out of memory); output in" in err


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize(
    "words", [["trainer.accelerator=cpu"], ["trainer.devices=2"], ["trainer.num_nodes=2"], ["count"]]
)
def test_what_runs_in_this_process(monkeypatch, capfd, tmp_path, words):
    """Runs that need no GPU or more than one, and a machine with only one."""
    count, words = (1, []) if words == ["count"] else (3, words)
    code, err = study(monkeypatch, capfd, tmp_path, noting, "seed=1,2", *words, count=count)
    assert code == 0, err
    assert {run["pid"] for run in seen_in(tmp_path)} == {os.getpid()}


@pytest.mark.usefixtures("no_report")
def test_what_stops_one_run_by_intention_stops_the_study(monkeypatch, capfd, tmp_path):
    def refuse(cfg):
        print("\nerror: this data set has no validation images", file=sys.stderr)
        sys.exit(1)

    code, err = study(monkeypatch, capfd, tmp_path, refuse, SEEDS)
    assert code == 1
    assert err.endswith("error: this data set has no validation images\n")
    assert err.count("error: ") == 1
    assert "seed=5" not in err


def two() -> int:
    return 2


def lost() -> None:
    os._exit(1)


def test_counting_leaves_this_process_without_cuda(monkeypatch):
    monkeypatch.setattr(gpus, "_count_gpus", two)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert gpus.visible_gpus() == ["5", "7"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert gpus.visible_gpus() == ["0", "1"]
    monkeypatch.setattr(gpus, "_count_gpus", lost)
    assert gpus.visible_gpus() == []


STUDY = ["seed=1,2", "epochs=60", "method.n_ctx=4"]


@pytest.mark.slow
def test_one_sigterm_stops_all_and_the_same_command_resumes(run, small, tmp_path):
    """And ends with the results of a study in one process."""
    whole, part = [["-m", *small, *STUDY, f"hydra.sweep.dir={tmp_path / name}"] for name in ("whole", "part")]
    assert run("train", *whole).code == 0
    process = run.start("train", *part, COOP_TEST_GPUS="0,1")
    begun = lambda: len(list((tmp_path / "part").rglob("last.ckpt"))) == 2  # noqa: E731
    words = advice(stop_once(run, process, begun, signal.SIGTERM), signal.SIGTERM)
    assert words == part
    assert not list((tmp_path / "part").rglob("error.txt"))
    assert still_running(tmp_path / "part") == []
    done = run("train", *words, COOP_TEST_GPUS="0,1")
    assert done.code == 0, done.err
    assert "2 of 2 runs finished, 0 failed" in done.err
    assert contents(tmp_path / "part") == contents(tmp_path / "whole")
    logs = [path.read_text() for path in (tmp_path / "part").rglob("log.txt")]
    assert sum("resumed after epoch" in text for text in logs) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has died")
def test_no_run_outlives_a_study_that_is_killed(run, small, tmp_path):
    process = run.start("train", "-m", *small, *STUDY, f"hydra.sweep.dir={tmp_path}", COOP_TEST_GPUS="0,1")
    done = stop_once(run, process, lambda: len(list(tmp_path.rglob("last.ckpt"))) == 2, signal.SIGKILL)
    assert done.code == -signal.SIGKILL
    deadline = time.monotonic() + 20
    while still_running(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert still_running(tmp_path) == []


def still_running(sweep: Path) -> list[Path]:
    """Runs whose lock somebody holds."""
    return [lock for lock in sweep.rglob(".lock") if subprocess.run(["flock", "-n", lock, "true"]).returncode]
