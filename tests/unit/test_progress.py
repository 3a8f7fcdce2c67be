"""Bars: a moving line in a terminal, at most a line each ten seconds in a file or a pipe."""

import io
import re
from types import SimpleNamespace

import pytest
import torch
import tqdm.std

from coop.system.progress import progress
from coop.training.trainer import RunProgress


class Clock:
    """Seconds that pass only when a test says so."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(tqdm.std, "time", clock)
    return clock


def run(bar, clock: Clock, steps: int, seconds: float) -> None:
    for _ in range(steps):
        clock.now += seconds
        bar.update(1)
    bar.close()


def test_a_pipe_gets_a_line_each_ten_seconds(capsys, clock):
    run(progress(total=50_000, desc="training", unit="step"), clock, steps=50_000, seconds=0.01)
    written = capsys.readouterr().err
    lines = written.splitlines()
    assert len(lines) == 50 and "\r" not in written and written.endswith("\n")
    assert re.fullmatch(r"training: 10\d\d/50000 step \[00:10<08:\d\d, .*100\.00step/s\]", lines[0])
    assert lines[-1].startswith("training: 50000/50000 step [08:")
    assert len(written) < 5000


def test_slow_and_uneven_steps(capsys, clock):
    """A thousand fast steps and then slow ones: tqdm's own guess would go silent, or speak twice."""
    bar = progress(total=1010, desc="x")
    for _ in range(1000):
        clock.now += 0.001
        bar.update(1)
    run(bar, clock, steps=10, seconds=9)
    assert [int(line.split()[1].split("/")[0]) for line in capsys.readouterr().err.splitlines()] == [
        *(1002, 1004, 1006, 1008, 1010)
    ]


def test_what_is_short_or_hidden_leaves_nothing(capsys, clock):
    run(progress(total=99, desc="test images", leave=False), clock, steps=99, seconds=0.1)
    run(progress(total=9000, desc="training", hidden=True), clock, steps=9000, seconds=1)
    assert list(progress(range(5), desc="images", leave=False)) == [0, 1, 2, 3, 4]
    assert capsys.readouterr().err == ""


def test_a_download_of_unknown_length(capsys, clock):
    run(progress(desc="file", unit="B", unit_scale=True), clock, steps=20, seconds=1)
    assert capsys.readouterr().err.splitlines()[-1].startswith("file: 20.0/? B [00:20<")


def test_a_terminal_has_a_moving_bar(monkeypatch, clock):
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    run(progress(total=100, desc="training"), clock, steps=100, seconds=0.1)
    assert stream.getvalue().count("\r") > 50 and stream.getvalue().count("\n") == 1
    assert "training: 100%|" in stream.getvalue()


class Read(torch.Tensor):
    """A tensor that counts how often it is read, which a GPU has to wait for."""

    reads = 0

    def __float__(self) -> float:
        Read.reads += 1
        return super().__float__()


def test_training_reads_its_metrics_only_for_a_line_that_is_shown(capsys, clock):
    loss = torch.tensor(0.25).as_subclass(Read)
    trainer = SimpleNamespace(
        max_epochs=10, estimated_stepping_batches=1000, global_step=0, is_global_zero=True, callback_metrics={"train/loss": loss}
    )  # fmt: skip
    shown = RunProgress()
    shown.on_train_start(trainer)
    for epoch in range(10):
        for _ in range(100):
            clock.now += 0.025
            shown.on_train_batch_end(trainer)
        trainer.current_epoch = epoch
        shown.on_train_epoch_end(trainer)
    shown.on_train_end(trainer)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == Read.reads == 3
    assert lines[-1].endswith("epoch=10/10, train/loss=0.250]")
