"""A killed run resumes where it was, to the same last digit."""

import csv
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from methods import quick
from safetensors.torch import load_file

pytestmark = pytest.mark.usefixtures("plain")

EPOCHS = "epochs=40"
# What a step sees comes from memory, from the main process, or from workers that read ahead.
KINDS = {
    "features": [],
    "what a method keeps": ["method=clap", "method.adaptive=true", "augmentation=views:3"],
    "gradient surgery, online": ["method=prograd", "augmentation=online"],
    "a text tower per image, online with workers": ["method=cocoop", "augmentation=online", "num_workers=2"],
    "image encoder, online with workers": ["method=image_encoder", "augmentation=online", "num_workers=2"],
    "two stages, online": ["method=two_stage", "augmentation=online"],
    "two stages by steps": ["method=two_stage", "epochs=null", "steps=11"],
    "steps of a context": ["epochs=null", "steps=11"],
    "prompts in both towers, views with workers": [*quick("promptsrc"), "augmentation=views:2", "num_workers=2"],
}


@pytest.fixture(scope="module")
def uninterrupted(run, small, work) -> Path:
    """A whole run."""
    folder = work / "uninterrupted"
    done = run("train", *small, EPOCHS, f"hydra.run.dir={folder}", COOP_TEST_PLAIN="1")
    assert done.code == 0, done.err
    return folder


def has_checkpoint(folder: Path) -> bool:
    return (folder / "last.ckpt").exists()


def interrupt(run, folder: Path, signum: int, *overrides: str, once=has_checkpoint):
    """Start a run and end it by a signal once it has a checkpoint, or more; it must not have finished."""
    process = run.start("train", *overrides, f"hydra.run.dir={folder}")
    deadline = time.monotonic() + 60
    while not once(folder):
        assert process.is_alive(), process.files[1].read_text()
        assert time.monotonic() < deadline, "no checkpoint"
        time.sleep(0.005)
    os.kill(process.pid, signum)
    done = run.finish(process)
    assert not (folder / "results.json").exists(), "it had finished before the signal came"
    assert not (folder / "prompt.safetensors").exists()
    return done


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_run_ends_as_the_uninterrupted_one(run, small, tmp_path, kind):
    overrides, whole, part = [*small, "epochs=6", "batch_size=10", *KINDS[kind]], tmp_path / "whole", tmp_path / "part"
    assert run("train", *overrides, f"hydra.run.dir={whole}").code == 0
    assert interrupt(run, part, signal.SIGKILL, *overrides).code == -signal.SIGKILL
    epochs = torch.load(part / "last.ckpt", weights_only=True)["epoch"] + 1
    done = run("train", *overrides, f"hydra.run.dir={part}")
    assert done.code == 0, done.err
    assert f"resumed after epoch {epochs} of 6" in done.err, "it did not start anew"
    for name in ("prompt.safetensors", "history.json"):
        assert (part / name).read_bytes() == (whole / name).read_bytes()


def test_killed_between_the_last_step_and_the_results(run, small, uninterrupted, tmp_path):
    import shutil

    folder = Path(shutil.copytree(uninterrupted, tmp_path / "run"))
    (folder / "results.json").unlink()
    (folder / "prompt.safetensors").unlink()
    done = run("train", *small, EPOCHS, f"hydra.run.dir={folder}")
    assert done.code == 0, done.err
    prompts = [load_file(place / "prompt.safetensors")["ctx"] for place in (uninterrupted, folder)]
    assert torch.equal(*prompts)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 half a zip", b"x" * 5000])
def test_a_damaged_checkpoint_is_said_to_be_damaged(run, small, copied, content):
    (copied / "results.json").unlink()
    (copied / "last.ckpt").write_bytes(content)
    done = run("train", *small, f"hydra.run.dir={copied}")
    assert done.code == 1
    assert str(copied / "last.ckpt") in done.error


def test_a_checkpoint_is_never_unpickled(run, small, copied, tmp_path):
    """What a file in a shared folder could do."""

    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    (copied / "results.json").unlink()
    checkpoint = torch.load(copied / "last.ckpt", weights_only=True)
    torch.save({**checkpoint, "trap": Trap()}, copied / "last.ckpt")
    done = run("train", *small, f"hydra.run.dir={copied}")
    assert done.code == 1
    assert not (tmp_path / "sprung").exists()
    assert str(copied / "last.ckpt") in done.error


def epochs_logged(folder):
    """The epochs in the metrics of all parts of a run."""
    parts = [csv.DictReader(path.open()) for path in folder.glob("csv/version_*/metrics.csv")]
    return {row["epoch"] for part in parts for row in part}


def test_the_csv_curve_survives_a_resume(run, small, tmp_path):
    """The rows of the first part are still there after the second."""

    def has_rows(folder: Path) -> bool:  # they are written a moment after the checkpoint
        return has_checkpoint(folder) and bool(epochs_logged(folder))

    interrupt(run, tmp_path, signal.SIGKILL, *small, "logger=csv", EPOCHS, once=has_rows)
    before = epochs_logged(tmp_path)
    done = run("train", *small, "logger=csv", EPOCHS, f"hydra.run.dir={tmp_path}")
    assert done.code == 0, done.err
    assert before
    assert before < epochs_logged(tmp_path)
