"""Folders of others, through the real commands: nothing of theirs runs, nothing of ours is overwritten or mixed up."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from conftest import results_of
from safetensors import safe_open
from safetensors.torch import save_file

pytestmark = pytest.mark.usefixtures("plain")


def set_config(folder: Path, **changes) -> Path:
    """Change keys of a folder's config.yaml; a mapping changes keys inside a group."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    for key, value in changes.items():
        config[key] = config[key] | value if isinstance(value, dict) else value
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def write_prompt(folder: Path, **tensors: torch.Tensor) -> Path:
    """Other tensors under the metadata of a folder's prompt, as an earlier version without checksums wrote it."""
    with safe_open(folder / "prompt.safetensors", framework="pt") as file:
        metadata = json.loads(file.metadata()["coop"])
    del metadata["crc32"]
    save_file(tensors, folder / "prompt.safetensors", metadata={"coop": json.dumps(metadata)})
    return folder


def marks(folder: Path) -> str:
    return f"__import__('pathlib').Path({str(folder / 'it_ran')!r}).touch()"


ATTACKS = {
    "reader that runs Python": lambda t: {"dataset": {"_target_": "timeit.timeit"}, "data_root": marks(t)},
    "method that runs a command": lambda t: {"method": {"_target_": "os.system", "command": f"touch {t / 'it_ran'}"}},
    "environment": lambda t: {"data_root": "${oc.env:HOME}"},
    "reader that is a method": lambda t: {"dataset": {"_target_": "coop.methods.coop.PromptLearner"}},
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_folder_runs_no_code_of_its_own(run, copied, photographs, tmp_path, attack):
    set_config(copied, **ATTACKS[attack](tmp_path))
    done = run("evaluate", f"run={copied}", "num_workers=0", f"hydra.run.dir={tmp_path / 'out'}")
    assert done.code == 1
    assert done.error.startswith(f"{copied / 'config.yaml'}: ")
    if "reader" not in attack:
        image = next(photographs.rglob("*.jpg"))
        for command in (["predict", f"run={copied}", str(image)], ["export", f"run={copied}"]):
            said = run(*command)
            assert said.code == 1 and "Traceback" not in said.err
            assert f"error: {copied / 'config.yaml'}: " in said.err
    assert not (tmp_path / "it_ran").exists()
    assert not (tmp_path / "out" / "results.json").exists()


def test_a_reader_that_is_not_needed_stops_nobody(run, copied, photographs, tmp_path):
    """A friend's run on data whose reader is not here: predicting and other data sets need none."""
    set_config(copied, dataset={"_target_": "not_here.read"})
    image = next(photographs.rglob("*.jpg"))
    done = run("predict", f"run={copied}", str(image), "json=true")
    assert done.code == 0, done.err
    done = run(
        "evaluate", f"run={copied}", f"targets=[{photographs / 'test'}]", "num_workers=0", f"hydra.run.dir={tmp_path}"
    )
    assert done.code == 0, done.err
    assert list(results_of(tmp_path)["targets"]) == ["test"]


def test_predict_never_prints_nan(run, copied, photographs):
    ctx = torch.full_like(next(iter(parts_of(copied).values())), 3e38)
    write_prompt(copied, ctx=ctx)
    done = run("predict", f"run={copied}", str(next(photographs.rglob("*.jpg"))), "json=true")
    assert done.code == 1
    assert "not numbers (NaN)" in done.err
    assert done.out == ""


def parts_of(folder: Path) -> dict[str, torch.Tensor]:
    with safe_open(folder / "prompt.safetensors", framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def test_an_evaluation_keeps_clear_of_runs_and_training_of_evaluations(run, small, finished, copied, tmp_path):
    before = (copied / "results.json").read_bytes()
    done = run("evaluate", f"run={finished}", "num_workers=0", f"hydra.run.dir={copied}")
    assert done.code == 1
    assert done.error.startswith(f"{copied}: holds a run, whose results would be overwritten")
    assert (copied / "results.json").read_bytes() == before

    out = tmp_path / "out"
    done = run("evaluate", f"run={finished}", "num_workers=0", f"hydra.run.dir={out}")
    assert done.code == 0, done.err
    done = run("train", *small, f"hydra.run.dir={out}")
    assert done.code == 1
    assert done.error.startswith(f"{out}: holds results.json without the config.yaml that says what computed it")
    assert results_of(out)["task"] == "evaluate"


def test_a_lost_config_does_not_make_a_run_finished(run, small, copied):
    (copied / "config.yaml").unlink()
    done = run("train", *small, "seed=5", f"hydra.run.dir={copied}")
    assert done.code == 1
    assert "already finished" not in done.err
    assert "holds results.json and" not in done.error
    assert "without the config.yaml" in done.error


def test_a_run_whose_prompt_is_damaged_is_not_finished(run, small, copied):
    """Otherwise what "train it again" would come to is "already finished"."""
    prompt = copied / "prompt.safetensors"
    whole = prompt.read_bytes()
    prompt.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    done = run("train", *small, f"hydra.run.dir={copied}")
    assert done.code == 1 and f"{prompt}: damaged" in done.error and "already finished" not in done.err
    prompt.unlink()
    (copied / "results.json").unlink()
    assert run("train", *small, f"hydra.run.dir={copied}").code == 0
    assert prompt.read_bytes() == whole


@pytest.mark.parametrize("case", ["another shape", "another config", "another optimizer"])
def test_a_checkpoint_that_is_not_this_runs(run, small, copied, case):
    (copied / "results.json").unlink()
    content = torch.load(copied / "last.ckpt", weights_only=True)
    if case == "another config":
        content["coop_config"]["seed"] = 9
    else:
        del content["coop_config"]
    if case == "another shape":
        content["state_dict"]["method.ctx"] = torch.zeros(3, 7)
    if case == "another optimizer":
        content["optimizer_states"][0]["param_groups"][0].pop("momentum")
    torch.save(content, copied / "last.ckpt")
    if case == "another optimizer":  # there is more to train
        set_config(copied, epochs=5)
        small = [*small, "epochs=5"]
    done = run("train", *small, f"hydra.run.dir={copied}")
    assert done.code == 1
    assert done.error.startswith(f"{copied / 'last.ckpt'}: ")
    assert "delete it to start this run anew" in done.error
    if case == "another shape":  # the advice is right
        (copied / "last.ckpt").unlink()
        assert run("train", *small, f"hydra.run.dir={copied}").code == 0


def test_a_converted_prompt_of_base_classes(run, small, tmp_path):
    """Its folder has no accuracies of its own: those of :base and :new are computed together."""
    base = tmp_path / "base"
    assert run("train", *small, "dataset.classes=base", "epochs=1", f"hydra.run.dir={base}").code == 0
    converted = Path(shutil.copytree(base, tmp_path / "converted"))
    results = {key: value for key, value in results_of(base).items() if "/" not in key}
    (converted / "results.json").write_text(json.dumps(results | {"task": "convert"}))
    new = run("evaluate", f"run={converted}", "targets=[:new]", "num_workers=0", f"hydra.run.dir={tmp_path / 'new'}")
    assert new.code == 0, new.err
    both = run(
        "evaluate", f"run={converted}", "targets=[:base,:new]", "num_workers=0", f"hydra.run.dir={tmp_path / 'both'}"
    )
    assert both.code == 0, both.err
    known = run("evaluate", f"run={base}", "targets=[:new]", "num_workers=0", f"hydra.run.dir={tmp_path / 'known'}")
    assert known.code == 0, known.err
    mean = results_of(tmp_path / "known")["test/harmonic_mean"]
    assert results_of(tmp_path / "both")["test/harmonic_mean"] == pytest.approx(mean, abs=1e-9)
    assert "test/harmonic_mean" not in results_of(tmp_path / "new")

    done = run("train", *small, "dataset.classes=base", "epochs=1", f"hydra.run.dir={converted}")
    assert done.code == 1
    assert done.error.startswith(f"{converted}: holds a converted prompt")
