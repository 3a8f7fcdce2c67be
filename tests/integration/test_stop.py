"""Ctrl-C and SIGTERM: one message that says how to resume, the exit code of shells, and nothing recorded as failed."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import as_in_a_terminal
from omegaconf import OmegaConf
from test_resume import has_checkpoint
from test_sweep import contents

from coop.cli.announce import to_resume
from coop.system import stop

pytestmark = pytest.mark.usefixtures("plain")

NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


def stop_once(run, process, happened, signum: int):
    """Send a signal to a command once something has happened; how it ended."""
    deadline = time.monotonic() + 60
    while not happened():
        assert process.is_alive(), process.files[1].read_text()
        assert time.monotonic() < deadline, process.files[1].read_text()
        time.sleep(0.005)
    os.kill(process.pid, signum)
    return run.finish(process)


def workers_of(pid: int) -> list[str]:
    """The processes that a process has started."""
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def advice(done, signum: int) -> list[str]:
    """The words of the command that a stopped one names; fails if it says anything else."""
    assert done.code == 128 + signum, done.err
    assert "Traceback" not in done.err
    (message,) = re.findall(r"stopped by (.*); to resume:\n  (.*)\n", done.err)
    assert message[0] == NAMES[signum]
    assert done.err.count("stopped by") == 1
    assert "error:" not in done.err
    return shlex.split(message[1])[3:]


@pytest.mark.parametrize("signum", NAMES)
def test_a_run_says_how_to_resume(run, small, tmp_path, signum):
    """With workers, which have nothing to say."""
    overrides = [*small, "epochs=100", "augmentation=online", "num_workers=2"]
    process = run.start("train", *overrides, f"hydra.run.dir={tmp_path}")
    done = stop_once(run, process, lambda: has_checkpoint(tmp_path), signum)
    assert advice(done, signum) == [*overrides, f"hydra.run.dir={tmp_path}"]
    assert not (tmp_path / "results.json").exists()


def test_a_run_without_a_folder_names_the_one_it_was_given(run, small):
    process = run.start("train", *small, "epochs=1000")
    begun = lambda: list((run.folder / "runs").glob("*/*/last.ckpt"))  # noqa: E731
    words = advice(stop_once(run, process, begun, signal.SIGTERM), signal.SIGTERM)
    assert words[-1] == f"hydra.run.dir={begun()[0].parent.relative_to(run.folder)}"
    done = run("train", *[word for word in words if not word.startswith("epochs=")], "epochs=1000", "shots=3")
    assert "holds a run with another config" in done.error, "the words lead into its folder"


@pytest.mark.parametrize("signum", NAMES)
def test_while_images_are_encoded(run, small, tmp_path, signum):
    overrides = [*small, "features=online", "num_workers=2"]
    slow = "coop.data.features.open_image"  # as from a slow disk
    process = run.start("train", *overrides, f"hydra.run.dir={tmp_path}", COOP_TEST_SLOW=slow)
    decoding = lambda: len(workers_of(process.pid)) == 2  # noqa: E731
    assert advice(stop_once(run, process, decoding, signum), signum) == [*overrides, f"hydra.run.dir={tmp_path}"]


def test_a_sweep_stops_and_resumes(run, small, tmp_path):
    """What is stopped has not failed, what would follow is not started, and the advice is the sweep's command."""
    sweep = ["-m", *small, "epochs=20", "batch_size=20", "seed=1,2", "method.n_ctx=4"]
    assert run("train", *sweep, f"hydra.sweep.dir={tmp_path / 'whole'}").code == 0
    process = run.start("train", *sweep, f"hydra.sweep.dir={tmp_path / 'part'}")
    begun = lambda: list((tmp_path / "part").rglob("last.ckpt"))  # noqa: E731
    words = advice(stop_once(run, process, begun, signal.SIGTERM), signal.SIGTERM)
    assert words == [*sweep, f"hydra.sweep.dir={tmp_path / 'part'}"]
    assert len(begun()) == 1, "the second was not started"
    assert not list((tmp_path / "part").rglob("error.txt"))
    done = run("train", *words)
    assert done.code == 0, done.err
    assert "resumed after epoch" in done.err
    assert "2 of 2 runs finished, 0 failed" in done.err
    assert contents(tmp_path / "part") == contents(tmp_path / "whole")


def test_ctrl_c_is_ignored_where_the_shell_says_so(run, small, tmp_path):
    process = run.start("train", *small, f"hydra.run.dir={tmp_path}", COOP_TEST_IGNORE_SIGINT="1")
    done = stop_once(run, process, (tmp_path / "config.yaml").exists, signal.SIGINT)
    assert done.code == 0, done.err
    assert (tmp_path / "results.json").exists()


@pytest.mark.parametrize(
    "command, advised",
    [
        ("train shots=1", "to resume:\n  python -m coop.train shots=1 hydra.run.dir=runs"),
        ("predict run={} {}", "start the same command again"),
    ],
)
def test_during_imports(tmp_path, finished, photographs, command, advised):
    """A user who has mistyped something does not wait."""
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", *f"coop.{command}".format(finished, photographs).split()],
        cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=as_in_a_terminal,
    )  # fmt: skip
    for line in process.stderr:
        if line.endswith(" numpy\n") or "torch" in line:
            process.send_signal(signal.SIGINT)
            break
    err = "".join(line for line in process.communicate()[1].splitlines(True) if not line.startswith("import time:"))
    assert process.returncode == 128 + signal.SIGINT, err
    assert err.strip().startswith(f"stopped by Ctrl-C; {advised}")
    assert "Traceback" not in err


@pytest.mark.slow
def test_two_processes_stop_and_the_first_says_so(run, small, tmp_path):
    """Started by Lightning: SIGTERM reaches the first, which takes the second with it."""
    two = ["trainer.devices=2", "trainer.strategy=ddp", "trainer.accelerator=cpu", "epochs=4000"]
    with open(tmp_path / "err", "w") as err:
        process = subprocess.Popen(
            [sys.executable, "-m", "coop.train", *small, *two, f"hydra.run.dir={tmp_path / 'run'}"],
            cwd=run.folder, env={**os.environ, **run.env}, stdout=err, stderr=err, start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + 120
        while not has_checkpoint(tmp_path / "run"):
            assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "err").read_text()
            time.sleep(0.05)
        process.terminate()
        assert process.wait(30) == 128 + signal.SIGTERM, (tmp_path / "err").read_text()
    text = (tmp_path / "err").read_text()
    assert text.count("stopped by SIGTERM; to resume:") == 1
    assert "Traceback" not in text
    deadline = time.monotonic() + 30
    with pytest.raises(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(process.pid, 0)
            time.sleep(0.1)


def test_a_process_that_was_forked_has_nothing_to_say():
    with stop.stoppable("said once"):
        if (child := os.fork()) == 0:
            after = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), stop.active()
            os._exit(after != (signal.SIG_IGN, signal.SIG_DFL, False))
        assert os.waitpid(child, 0)[1] == 0


def test_a_process_ends_that_is_told_to_while_it_is_forked():
    """As data-loader workers are when their process is stopped as it starts them."""
    with stop.stoppable("said by the parent alone"):
        if (child := os.fork()) == 0:
            time.sleep(10)
            os._exit(0)
        os.kill(child, signal.SIGTERM)
        assert os.waitpid(child, 0)[1] == signal.SIGTERM


def test_handlers_are_put_back(capfd):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped, stop.stoppable("how to resume"):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
    assert stopped.value.code == 128 + signal.SIGTERM
    assert capfd.readouterr().err == "\nstopped by SIGTERM; how to resume\n"
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_breaks_because_of_a_stop_is_no_error(capfd):
    with pytest.raises(SystemExit) as stopped, stop.stoppable("how to resume"):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
        except stop.Stopped:
            raise RuntimeError("DataLoader worker exited unexpectedly") from None
    assert stopped.value.code == 128 + signal.SIGTERM
    assert capfd.readouterr().err.strip() == "stopped by SIGTERM; how to resume"


def test_workers_that_end_after_the_stop_are_no_error():
    """As torch complains of data-loader workers that multiprocessing ends at exit."""

    def complain(*_):
        raise RuntimeError("DataLoader worker is killed by signal")

    before = signal.signal(signal.SIGCHLD, complain)
    try:
        with pytest.raises(SystemExit), stop.stoppable():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
        child = os.fork() or os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_a_stop_is_not_lost_in_a_destructor(capfd):
    """Python prints what is raised there, and goes on."""

    class Told:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)

    with pytest.raises(SystemExit) as stopped, stop.stoppable("how to resume"):
        told = Told()
        del told
        time.sleep(5)
    assert stopped.value.code == 128 + signal.SIGTERM
    assert capfd.readouterr().err == "\nstopped by SIGTERM; how to resume\n"


@pytest.mark.parametrize("given", [["hydra.run.dir=a b"], []])
def test_the_folder_is_named_once(monkeypatch, given):
    monkeypatch.setattr(sys, "argv", ["train.py", "shots=1", *given])
    hydra = OmegaConf.create({"run": {"dir": "a b"}, "job": {"name": "train"}})
    assert to_resume(hydra, "run") == "to resume:\n  python -m coop.train shots=1 'hydra.run.dir=a b'"
