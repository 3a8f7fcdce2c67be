"""Two processes train what one trains."""

import json
import os
import socket
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from coop.cli.hydra_app import launch

pytestmark = pytest.mark.usefixtures("plain")

TWO = ["trainer.devices=2", "trainer.strategy=ddp"]


def in_two_processes(run, *overrides: str, accelerator: str = "cpu", report: Path | None = None) -> list:
    """Both processes started from outside, as a cluster does; the main one first.

    With accelerator="pretend", `report` and the rank name the files of what each process has seen.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": "0"}
    command = ["train", *overrides, *TWO, f"trainer.accelerator={accelerator}"]
    reports = [{"COOP_TEST_PRETEND": f"{report}{rank}"} if report else {} for rank in (0, 1)]
    started = [run.start(*command, **env, **reports[rank], LOCAL_RANK=str(rank)) for rank in (0, 1)]
    return [run.finish(process) for process in started]


def equal(one: Path, two: Path, epochs: int = 3) -> None:
    first, second = (load_file(folder / "prompt.safetensors") for folder in (one, two))
    assert max((first[key].float() - second[key].float()).abs().max() for key in first) < 1e-5
    for a, b in zip(
        *(json.loads((folder / "history.json").read_text())["epochs"] for folder in (one, two)), strict=True
    ):
        assert b["train/loss"] == pytest.approx(a["train/loss"], rel=1e-4), "of all processes"
        assert abs(a["train/acc"] - b["train/acc"]) <= 1 / 20 + 1e-6, "one image of 20 at most"
    results = [json.loads((folder / "results.json").read_text()) for folder in (one, two)]
    for key in ("zero_shot/acc", "zero_shot/macro_acc", "val/acc", "n_val", "n_test", "epochs", "trainable_params"):
        assert results[0][key] == pytest.approx(results[1][key], abs=1e-6)
    assert abs(results[0]["test/acc"] - results[1]["test/acc"]) <= 1 / 20 + 1e-6, "one image of 20 at most"
    assert torch.load(two / "last.ckpt", weights_only=True)["epoch"] == epochs - 1


@pytest.mark.parametrize(
    "overrides",
    [
        ["augmentation=online", "method.class_specific=true"],
        ["method=tcp", "augmentation=views:2", "features=cached"],
        ["method=prograd", "method.ctx_init=null"],
        ["method=cocoop", "method.ctx_init=null"],
        ["method=plot", "method.n_prompts=2", "batch_size=20"],
    ],
    ids=lambda value: value[0],
)
def test_two_processes_equal_one(run, small, tmp_path, overrides):
    overrides = [*small, "method.n_ctx=4", *overrides, f"cache_dir={tmp_path / 'cache'}"]
    one = run("train", *overrides, "features=online", f"hydra.run.dir={tmp_path / 'one'}")
    assert one.code == 0, one.err
    main, other = in_two_processes(run, *overrides, f"hydra.run.dir={tmp_path / 'two'}")
    assert (main.code, other.code) == (0, 0), main.err + other.err
    equal(tmp_path / "one", tmp_path / "two")
    assert "zero-shot" in main.out
    assert other.out == "", "one process speaks"


@pytest.mark.parametrize(
    "method", [["method=clap", "method.adaptive=true", "augmentation=views:2"], ["method=tip_adapter_f"]]
)
def test_two_processes_equal_one_in_feature_space(run, small, tmp_path, method):
    overrides = [*small, *method, "epochs=3", f"cache_dir={tmp_path / 'cache'}"]
    one = run("train", *overrides, f"hydra.run.dir={tmp_path / 'one'}")
    assert one.code == 0, one.err
    main, other = in_two_processes(run, *overrides, f"hydra.run.dir={tmp_path / 'two'}")
    assert (main.code, other.code) == (0, 0), main.err + other.err
    equal(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_started_by_lightning(run, small, finished, tmp_path):
    """As a user does: Lightning starts the second process by the command line of the first."""
    done = run.interpreter("-m", "coop.train", *small, *TWO, "trainer.accelerator=cpu", f"hydra.run.dir={tmp_path}")
    assert done.code == 0, done.err
    equal(finished, tmp_path)
    assert done.out.count("zero-shot") == 1


def test_batches_that_cannot_be_shared_end_in_one_message(run, small, tmp_path):
    for done in in_two_processes(run, *small, "batch_size=5", f"hydra.run.dir={tmp_path}"):
        assert done.code != 0
        assert "batch_size=5: must be a multiple of the 2 devices" in done.error


def test_what_a_command_sets_for_itself_hides_nothing_from_its_children(run, monkeypatch, tmp_path):
    """The second process inherits the environment: its mistakes too end in a message, not in a traceback."""
    inherited = {}
    monkeypatch.setenv("HYDRA_FULL_ERROR", "")
    monkeypatch.setattr(sys, "argv", ["train.py", f"hydra.run.dir={tmp_path / 'main'}"])
    launch(lambda cfg: inherited.update(os.environ), "train")
    changed = {
        key: value for key, value in inherited.items() if key.startswith(("HYDRA", "COOP_")) and key != "COOP_CACHE"
    }
    done = run("train", "method.n_ctx=0", f"hydra.run.dir={tmp_path / 'other'}", **changed)
    assert done.code == 1
    assert done.error.startswith("method.n_ctx=0")
