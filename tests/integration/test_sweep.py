"""Sweeps: stopped and continued at will, shared between processes, each setting once, the truth at the end."""

import json
import os
import random
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from filelock import FileLock
from safetensors.torch import load_file

from coop import CoopError, train
from coop.cli.hydra_app import launch
from coop.cli.overrides import as_override
from coop.system.files import MARK
from coop.training.trainer import AtomicCheckpointIO

pytestmark = pytest.mark.usefixtures("plain")

GRID = ["shots=1,2", "seed=1,2", "method.n_ctx=4"]
SETTINGS = 4


def contents(sweep: Path) -> dict[str, tuple]:
    """What each setting computed: accuracies and the prompt's bytes, by its folder."""
    found = {}
    for path in sorted(sweep.rglob("results.json")):
        results = json.loads(path.read_text())
        figures = {key: value for key, value in results.items() if not key.endswith(("seconds", "memory_mb"))}
        prompt = load_file(path.parent / "prompt.safetensors")["ctx"]
        found[str(path.parent.relative_to(sweep))] = (figures, prompt.numpy().tobytes())
    return found


def torn(sweep: Path) -> list[str]:
    """Files of ours beneath a folder that are there and not whole, if nobody writes at the moment.

    .hydra/ and multirun.yaml are Hydra's own, written anew at every start and read by nobody.
    """
    read = {
        "results.json": lambda path: json.loads(path.read_text()),
        "prompt.safetensors": load_file,
        "last.ckpt": lambda path: torch.load(path, weights_only=True)["state_dict"],
        "config.yaml": lambda path: yaml.safe_load(path.read_text())["method"]["n_ctx"],
    }
    bad = []
    for path in sweep.rglob("*"):
        if path.name in read and ".hydra" not in path.parts:
            try:
                read[path.name](path)
            except Exception as error:
                bad.append(f"{path}: {error!r}")
    return bad


def leftovers(sweep: Path) -> list[Path]:
    """Temporary files in the folders of its settings: what a killed process was writing."""
    return list(sweep.rglob(f"{MARK}*"))


def kill_and_continue(run, arguments: list[str], sweep: Path, settings: int, kills: int, span: float, seed: int) -> int:
    """Start a sweep, kill it after a random time, start it again, until so many were killed; then let it finish.

    A sweep that finishes in spite of that begins anew in an empty folder.

    Returns:
        How many kills struck while a run was being trained.
    """
    rng, done, in_training = random.Random(seed), 0, 0
    while done < kills:
        process = run.start("train", *arguments, f"hydra.sweep.dir={sweep}")
        process.join(rng.uniform(0, span))
        if process.exitcode is not None:
            assert run.finish(process).code == 0, process.files[1].read_text()
            shutil.rmtree(sweep)
            continue
        os.kill(process.pid, signal.SIGKILL)
        assert run.finish(process).code == -signal.SIGKILL
        done += 1
        assert torn(sweep) == []
        in_training += any(not (path.parent / "results.json").exists() for path in sweep.rglob("last.ckpt"))
    last = run("train", *arguments, f"hydra.sweep.dir={sweep}")
    assert last.code == 0, last.err
    assert f"{settings} of {settings} runs finished, 0 failed" in last.err
    return in_training


@pytest.fixture(scope="module")
def sweep_of_small(small) -> list[str]:
    return ["-m", *small, *GRID, "epochs=15", "logger=csv"]  # of a key given twice, the last counts


@pytest.fixture(scope="module")
def unbroken(run, sweep_of_small, work) -> tuple[Path, float]:
    """The sweep in one go: its folder, and how long it took in seconds."""
    folder, started = work / "unbroken sweep", time.monotonic()
    done = run("train", *sweep_of_small, f"hydra.sweep.dir={folder}", COOP_TEST_PLAIN="1")
    assert done.code == 0, done.err
    assert len(contents(folder)) == SETTINGS
    return folder, time.monotonic() - started


def times_trained(sweep: Path) -> list[int]:
    """How often the training of each setting was begun."""
    return [len(list(path.parent.glob("csv/version_*"))) for path in sorted(sweep.rglob("results.json"))]


def test_a_killed_sweep_ends_as_the_unbroken_one(run, sweep_of_small, unbroken, tmp_path):
    """Half of its settings, to be quick."""
    whole, seconds = unbroken
    half = [*sweep_of_small, "seed=1"]
    kill_and_continue(run, half, tmp_path / "sweep", settings=2, kills=3, span=0.4 * seconds, seed=0)
    expected = {name: found for name, found in contents(whole).items() if "seed=1" in name}
    assert len(expected) == 2
    assert contents(tmp_path / "sweep") == expected
    assert leftovers(tmp_path / "sweep") == []


@pytest.mark.slow
def test_the_bundled_sweep_killed_twenty_times(run, tmp_path):
    arguments = ["-m", *GRID, "epochs=20", "features=cached", "num_workers=0", "logger=none"]
    started = time.monotonic()
    done = run("train", *arguments, f"hydra.sweep.dir={tmp_path / 'whole'}")
    assert done.code == 0, done.err
    seconds = time.monotonic() - started
    struck = kill_and_continue(run, arguments, tmp_path / "sweep", SETTINGS, kills=20, span=0.3 * seconds, seed=1)
    assert struck > 3
    assert contents(tmp_path / "sweep") == contents(tmp_path / "whole")
    assert leftovers(tmp_path / "sweep") == []


def test_what_a_kill_left_of_a_file_is_removed(run, sweep_of_small, unbroken, tmp_path):
    """A process killed between writing a temporary file and moving it to its place."""
    sweep = Path(shutil.copytree(unbroken[0], tmp_path / "sweep"))
    run_dir = next(sweep.rglob("results.json")).parent
    (run_dir / "results.json").rename(run_dir / f"{MARK}abcd1234")
    (run_dir / f"{MARK}1234abcd").write_bytes(b"half")
    done = run("train", *sweep_of_small, f"hydra.sweep.dir={sweep}")
    assert done.code == 0, done.err
    assert contents(sweep) == contents(unbroken[0])
    assert leftovers(sweep) == []


def test_relative_paths_do_not_lead_runs_out_of_the_sweep(run, small, photographs, work, tmp_path):
    """Hydra names the folder of a run after its values, `dataset.path=../../photographs` among them."""
    path = f"dataset.path=../../{work.name}/{photographs.name}"
    words = [path if word.startswith("dataset.path=") else word for word in small]
    done = run("train", "-m", *words, "method=zero_shot", "seed=1,2", f"hydra.sweep.dir={tmp_path}/sweep")
    assert done.code == 0 and "2 of 2 runs finished" in done.err, done.err
    assert len(list((tmp_path / "sweep").rglob("results.json"))) == 2


def test_two_processes_share_a_sweep(run, sweep_of_small, unbroken, tmp_path):
    """Neither waits for the other: whichever ends while the other computes says so, and has not failed."""
    both = [run.start("train", *sweep_of_small, f"hydra.sweep.dir={tmp_path}") for _ in range(2)]
    for done in map(run.finish, both):
        assert done.code == 0, done.err
        assert re.search(
            rf"\d of {SETTINGS} runs finished, 0 failed(, 1 still running in another process)?\n", done.err
        )
    assert any(f"{SETTINGS} of {SETTINGS} runs finished, 0 failed\n" in run.finish(process).err for process in both)
    assert times_trained(tmp_path) == [1] * SETTINGS
    assert contents(tmp_path) == contents(unbroken[0])
    assert torn(tmp_path) == []
    assert leftovers(tmp_path) == []


def test_a_run_that_another_process_computes_is_skipped(run, sweep_of_small, unbroken, tmp_path):
    """This test holds one run as another process would."""
    sweep = Path(shutil.copytree(unbroken[0], tmp_path / "sweep"))
    name = sorted(contents(sweep))[1]
    shutil.rmtree(sweep / name)
    shutil.rmtree(sweep / "report")
    (sweep / name).mkdir()
    with FileLock(sweep / name / ".lock"):
        done = run("train", *sweep_of_small, f"hydra.sweep.dir={sweep}")
    assert done.code == 0, done.err
    assert f"{sweep / name}: another process is computing this run; skipped" in done.err
    assert f"{SETTINGS - 1} of {SETTINGS} runs finished, 0 failed, 1 still running in another process\n" in done.err
    assert done.err.endswith(f"still running: {name}\n")
    assert not (sweep / "report").exists(), "the process that ends last writes it, of all runs"
    done = run("train", *sweep_of_small, f"hydra.sweep.dir={sweep}")
    assert done.code == 0, done.err
    assert times_trained(sweep) == [1] * SETTINGS
    assert contents(sweep) == contents(unbroken[0])
    assert (sweep / "report/report.html").exists()


def test_a_finished_sweep_is_not_computed_again(run, sweep_of_small, unbroken, tmp_path):
    sweep = Path(shutil.copytree(unbroken[0], tmp_path / "sweep"))
    written = {path: path.stat().st_mtime_ns for path in sweep.rglob("*") if path.suffix in (".json", ".ckpt")}
    done = run("train", *sweep_of_small, f"hydra.sweep.dir={sweep}")
    assert done.code == 0, done.err
    assert done.err.count("already finished with this config") == SETTINGS
    assert "training" not in done.err
    assert {path: path.stat().st_mtime_ns for path in written} == written


def test_the_table_at_the_end(run, sweep_of_small, unbroken, tmp_path):
    """Mean and deviation over seeds, as the report says them; where the page lies."""
    sweep = Path(shutil.copytree(unbroken[0], tmp_path / "sweep"))
    accuracies = {}
    for path, value in zip(sorted(sweep.rglob("results.json")), (0.5, 0.25, 0.6, 0.25), strict=True):
        results = json.loads(path.read_text())
        accuracies.setdefault(results["shots"], []).append(value)
        path.write_text(json.dumps(results | {"test/acc": value}))
    done = run("train", *sweep_of_small, f"hydra.sweep.dir={sweep}")
    assert sorted(map(sorted, accuracies.values())) == [[0.25, 0.25], [0.5, 0.6]]
    assert re.search(r"55\.00 ± 7\.07 \(2\)", done.out)
    assert re.search(r"25\.00 ± 0\.00 \(2\)", done.out)
    assert f"report   {sweep / 'report/report.html'}" in done.out
    assert (sweep / "report/report.html").exists()


def test_a_setting_that_fails_is_recorded_and_the_others_go_on(run, small, tmp_path):
    """And failures of another sweep in the same folder are not counted: only what this one came to."""
    bad = ["-m", *small, "epochs=1", "method.n_ctx=0,2", "seed=1,2", f"hydra.sweep.dir={tmp_path}"]
    done = run("train", *bad)
    assert done.code == 1
    assert "2 of 4 runs finished, 2 failed" in done.err
    errors = sorted(path.read_text() for path in tmp_path.rglob("error.txt"))
    assert len(errors) == 2
    assert all("method.n_ctx=0" in text for text in errors)
    assert "Traceback" not in done.err
    good = ["-m", *small, "epochs=1", "method.n_ctx=2", "seed=1,2,3", f"hydra.sweep.dir={tmp_path}"]
    done = run("train", *good)
    assert done.code == 0, done.err
    assert "3 of 3 runs finished, 0 failed" in done.err
    assert len(list(tmp_path.rglob("error.txt"))) == 2


def test_a_report_that_fails_does_not_change_the_sweep(run, sweep_of_small, unbroken, tmp_path):
    sweep = Path(shutil.copytree(unbroken[0], tmp_path / "sweep", ignore=shutil.ignore_patterns("report")))
    (sweep / "report").write_text("a file where the report's folder should be")
    done = run("train", *sweep_of_small, f"hydra.sweep.dir={sweep}")
    assert done.code == 0, done.err
    assert f"{SETTINGS} of {SETTINGS} runs finished, 0 failed" in done.err
    assert f"no report: {sweep / 'report'}" in done.err


def test_the_folder_of_a_setting_is_taken_as_it_is_called(run, unbroken, tmp_path):
    """It has "=" and "," in its name, to which Hydra's grammar gives a meaning."""
    name, (figures, _) = next(iter(contents(unbroken[0]).items()))
    done = run("evaluate", f"run={unbroken[0] / name}", "num_workers=0", f"hydra.run.dir={tmp_path / 'tested'}")
    assert done.code == 0, done.err
    tested = json.loads((tmp_path / "tested/results.json").read_text())
    assert tested["targets"]["folder"]["test/acc"] == figures["test/acc"]


def test_words_that_are_quoted_and_words_that_are_not(tmp_path):
    odd = tmp_path / "seed=1,shots=2" / "o'clock"
    odd.mkdir(parents=True)
    assert as_override(f"run={odd}") == "run='" + str(odd).replace("'", "\\'") + "'"
    for word in ("seed=1,2", "-m", "+exp=paper", "run=", f"data_root={tmp_path}", f"run='{odd.parent}'"):
        assert as_override(word) == word


def test_a_checkpoint_is_never_half_there(tmp_path, monkeypatch):
    """Written beside its place and moved: whatever stops that leaves the one before."""
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"epoch": 1}, path)

    def stopped(source, _):
        assert Path(source).parent == tmp_path, "on the same disk"
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", stopped)
    with pytest.raises(CoopError, match="No space left on device"):
        AtomicCheckpointIO().save_checkpoint({"epoch": 2}, path)
    assert torch.load(path, weights_only=True)["epoch"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.fixture
def with_other_figures(copied) -> Path:
    """A finished run whose test accuracy says the opposite of its validation accuracy."""
    path = copied / "results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"val/acc": 0.25, "test/acc": 0.75}))
    return copied


def test_what_a_sweeper_sees_is_the_validation_accuracy(small, with_other_figures, monkeypatch):
    values = []
    monkeypatch.setattr(sys, "argv", ["train.py", *small, f"hydra.run.dir={with_other_figures}"])
    launch(lambda cfg: values.append(train.main(cfg)), "train")
    assert values == [0.25]
