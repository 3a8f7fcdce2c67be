"""coop.run: the command's run without leaving the process, and nothing of it left behind."""

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

import coop
from coop import CoopError
from coop.training.trainer import RunProgress

MEASURED = ("encode_seconds", "fit_seconds", "test_seconds", "step_seconds", "peak_memory_mb")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, work, monkeypatch):
    """In a folder of its own, with the commands' cache of features; the process is afterwards as it was."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COOP_CACHE", str(work / "cache"))
    before = sys.argv, os.getcwd(), signal.getsignal(signal.SIGINT)
    yield
    assert before == (sys.argv, os.getcwd(), signal.getsignal(signal.SIGINT))
    assert not GlobalHydra.instance().is_initialized() and not HydraConfig.initialized()


def test_a_run_is_that_of_the_command(finished, small, photographs, tmp_path, capsys):
    run = coop.run(*small, "hydra.run.dir=mine")
    theirs = json.loads((finished / "results.json").read_text())
    assert json.loads((tmp_path / "mine" / "results.json").read_text()).keys() == theirs.keys()
    assert {k: v for k, v in run.results.items() if k in theirs and k not in MEASURED} == {
        k: v for k, v in theirs.items() if k not in MEASURED
    }
    assert (tmp_path / "mine/prompt.safetensors").read_bytes() == (finished / "prompt.safetensors").read_bytes()
    of_command = {p.name for p in finished.iterdir()} - {"train.log"}
    assert {p.name for p in (tmp_path / "mine").iterdir()} == of_command
    assert capsys.readouterr().out == "", "the run shows itself"
    image = next((photographs / "test").rglob("*.jpg"))
    assert run.predict(image, top=2) == coop.load_run(finished, "cpu").predict(image, top=2)
    when = (tmp_path / "mine/results.json").stat().st_mtime_ns
    assert coop.run(*small, "hydra.run.dir=mine").results == run.results
    assert (tmp_path / "mine/results.json").stat().st_mtime_ns == when, "nothing is computed again"


def test_without_a_folder_it_is_named_by_the_time(small, monkeypatch):
    monkeypatch.setattr("coop.train.main", lambda cfg, show: None)
    with pytest.raises(CoopError, match=r"runs/\d{4}-\d\d-\d\d/\d\d-\d\d-\d\d-\d{6}/prompt.safetensors: no such file"):
        coop.run(*small)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["batch_size=four"], r"^batch_size=four: must be int, such as batch_size=32$"),
        (["shots=0"], r"^shots=0: give 1 or more training images per class"),
        (["shot=4"], r"^shot: there is no such key; did you mean shots\? "),
        (["method=cop"], r"^method=cop: there is no such method; near matches: coop"),
        (["dataset=folder", "dataset.path=nowhere"], r"nowhere"),
        (["seed=1,2"], r"^seed=1,2: several values; coop.run is one run; .*python -m coop.train -m"),
        (["trainer.devices=2"], r"^trainer.devices=2: here is one process; use python -m coop.train$"),
        (["-m", "seed=1"], r"^-m: expected key=value; coop.run is one run"),
        (["--config-dir", "mine"], r"^--config-dir: expected key=value; give config_dir=DIR to coop.run"),
        (
            ["+exp=few_shot_curve"],
            r"^\+exp=few_shot_curve: a study of several runs \(give shots=\.\.\. seed=\.\.\. for one of them\); coop.run",
        ),
    ],
)
def test_what_is_wrong_is_said_as_the_command_says_it(words, message, capfd):
    with pytest.raises(CoopError, match=message):
        coop.run("backbone=tiny", "logger=none", *words)
    assert capfd.readouterr().err == ""


def test_an_error_of_ours_is_no_message(small, monkeypatch):
    monkeypatch.setattr("coop.train.train", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        coop.run(*small)


def test_interrupted_and_resumed(finished, small, monkeypatch):
    """Ctrl-C in a notebook stops the cell, not the kernel; the same call goes on from the checkpoint."""
    epochs = []

    def interrupt(self, trainer, *_):
        epochs.append(trainer.current_epoch)
        if epochs == [0, 1]:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunProgress, "on_train_epoch_end", interrupt)
    np.random.seed(5), torch.manual_seed(5)
    expected = np.random.rand(), torch.rand(1)
    np.random.seed(5), torch.manual_seed(5)
    with pytest.raises(KeyboardInterrupt):
        coop.run(*small, "hydra.run.dir=mine")
    assert (np.random.rand(), torch.rand(1)) == expected, "the notebook's random numbers are its own"
    run = coop.run(*small, "hydra.run.dir=mine")
    assert epochs == [0, 1, 1, 2], "from the checkpoint of the first epoch"
    assert Path("mine/prompt.safetensors").read_bytes() == (finished / "prompt.safetensors").read_bytes()
    assert run.results["epochs"] == 3


def test_configs_of_ones_own(small, tmp_path):
    with pytest.raises(CoopError, match="config_dir=nowhere: no such folder"):
        coop.run(*small, config_dir="nowhere")
    own = tmp_path / "my configs" / "method"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text("_target_: coop.methods.coop.PromptLearner\nname: mine\nn_ctx: 2\n")
    run = coop.run(*small, "method=mine", "epochs=1", "hydra.run.dir=mine", config_dir="my configs")
    assert (run.results["method"], run.results["n_ctx"]) == ("mine", 2)
