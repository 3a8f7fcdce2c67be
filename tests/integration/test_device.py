"""On an accelerator, a pretended one: several processes, precisions, resuming; each method is in test_every_method."""

import json
from pathlib import Path

import pytest
import torch
from conftest import results_of
from safetensors.torch import load_file
from test_ddp import equal, in_two_processes

pytestmark = pytest.mark.usefixtures("plain")
SMALL = ["epochs=2", "batch_size=10"]
ACCURACIES = ("test/acc", "test/macro_acc", "zero_shot/acc")


def check(path: Path) -> None:
    """What one process has seen: no wait within a step, no product on the CPU once it is set up."""
    seen = json.loads(path.read_text())
    assert seen["syncs"] == {}
    assert [place for place in seen["cpu"] if not place.startswith("before")] == []


@pytest.mark.parametrize(
    "overrides",
    [
        ["method.class_specific=true"],
        pytest.param(["method=image_encoder", "augmentation=online"], marks=pytest.mark.slow),
        pytest.param(["method=two_stage", "augmentation=online"], marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_two_processes_on_devices_equal_one_on_the_cpu(run, small, tmp_path, overrides):
    overrides = [*small, "epochs=2", *overrides, f"cache_dir={tmp_path / 'cache'}"]
    one = run("train", *overrides, "trainer.accelerator=cpu", f"hydra.run.dir={tmp_path / 'one'}")
    assert one.code == 0, one.err
    both = in_two_processes(
        run, *overrides, f"hydra.run.dir={tmp_path / 'two'}", accelerator="pretend", report=tmp_path / "seen"
    )
    assert [done.code for done in both] == [0, 0], both[0].err + both[1].err
    for rank in (0, 1):
        check(tmp_path / f"seen{rank}")
    equal(tmp_path / "one", tmp_path / "two", epochs=2)


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_an_evaluation_has_the_precision_of_its_run(run, small, tmp_path, precision):
    options = [*small, *SMALL, f"trainer.precision={precision}", f"hydra.run.dir={tmp_path / 'run'}"]
    assert run("train", *options).code == 0
    again = [f"run={tmp_path / 'run'}", "features=cached", "num_workers=0", f"hydra.run.dir={tmp_path / 'again'}"]
    assert run("evaluate", *again).code == 0
    trained, (evaluated,) = results_of(tmp_path / "run"), results_of(tmp_path / "again")["targets"].values()
    for key in (*ACCURACIES, "test/ece", "zero_shot/ece"):
        assert evaluated[key] == trained[key]


def test_what_was_learned_on_a_gpu_is_resumed_on_a_cpu(run, small, tmp_path, monkeypatch):
    whole = [*small, "epochs=2", f"hydra.run.dir={tmp_path / 'whole'}"]
    assert run("train", *whole).code == 0
    part = [*small, "epochs=2", f"hydra.run.dir={tmp_path / 'part'}"]
    assert run("train", *part).code == 0
    content = torch.load(tmp_path / "part" / "last.ckpt", weights_only=True)
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
    torch.save(content, tmp_path / "part" / "last.ckpt")
    (tmp_path / "part" / "results.json").unlink()
    resumed = run("train", *part)
    assert resumed.code == 0, resumed.err
    first, second = (load_file(tmp_path / name / "prompt.safetensors")["ctx"] for name in ("whole", "part"))
    assert torch.equal(first, second)


def test_what_is_learned_is_on_disk_before_it_is_tested(run, small, tmp_path):
    """Testing fails (a full disk, a lost GPU, a kill): the prompt is there, and the next start has only to test."""
    options = [*small, f"hydra.run.dir={tmp_path}"]
    done = run("train", *options, COOP_TEST_FAIL="coop.train.evaluate")
    assert done.code != 0
    learned = (tmp_path / "prompt.safetensors").read_bytes()
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["epoch"] == 2
    assert not (tmp_path / "results.json").exists()
    done = run("train", *options)
    assert done.code == 0, done.err
    assert (tmp_path / "prompt.safetensors").read_bytes() == learned
