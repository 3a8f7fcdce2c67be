"""python -m coop.train: what it prints, writes and leaves behind."""

import csv
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import coop

pytestmark = pytest.mark.usefixtures("plain")
CONTRACT = {
    "task", "method", "backbone", "pretrained", "dataset", "shots", "seed", "n_ctx", "class_specific",
    "class_token_position", "num_classes", "trainable_params", "epochs", "n_train", "n_test", "test/acc",
    "test/macro_acc", "zero_shot/acc", "fit_seconds", "test_seconds", "version",
}  # fmt: skip


def results_of(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def default(run, work):
    """The bundled default; half of its classes, one shot and two epochs to be quick."""
    folder = work / "default"
    done = run("train", "shots=1", "epochs=2", "dataset.classes=new", f"hydra.run.dir={folder}")
    assert done.code == 0, done.err
    return folder, done


def test_the_bundled_default_from_another_folder(default):
    folder, done = default
    results = results_of(folder)
    assert results.keys() >= CONTRACT
    expected = {
        "task": "train", "method": "coop", "backbone": "tiny", "pretrained": None, "dataset": "mini", "shots": 1,
        "seed": 1, "n_ctx": 16, "class_specific": False, "class_token_position": "end", "num_classes": 12,
        "trainable_params": 16 * 256, "epochs": 2, "n_train": 12, "n_val": 12, "n_test": 240,
        "version": coop.__version__,
    }  # fmt: skip
    assert {key: results[key] for key in expected} == expected
    assert results["zero_shot/acc"] > 0.55, "the bundled CLIP knows these classes"
    assert results["test/macro_acc"] == pytest.approx(results["test/acc"], abs=1e-6), "20 test images of each class"
    assert results["zero_shot/acc"] * 240 == pytest.approx(round(results["zero_shot/acc"] * 240), abs=1e-3)
    assert "Traceback" not in done.err


def test_the_closing_table_says_what_results_json_says(default):
    folder, done = default
    results = results_of(folder)
    for name in ("zero_shot/acc", "zero_shot/macro_acc", "test/acc", "test/macro_acc"):
        assert f"{100 * results[name]:.2f}" in done.out
    for file in ("results.json", "prompt.safetensors"):
        assert str(folder / file) in done.out
    assert "zero-shot" in done.out
    assert "4,096 trained parameters" in done.out


def test_wandb_runs_offline_without_a_key(default):
    folder, _ = default
    (offline,) = (folder / "wandb").glob("offline-run-*")
    assert list(offline.glob("*.wandb"))


def test_the_checkpoint_is_kilobytes_and_holds_no_clip(default):
    folder, _ = default
    assert (folder / "last.ckpt").stat().st_size < 100_000
    checkpoint = torch.load(folder / "last.ckpt", weights_only=True)
    assert list(checkpoint["state_dict"]) == ["method.ctx"]
    assert checkpoint["epoch"] == 1
    assert torch.equal(checkpoint["state_dict"]["method.ctx"], load_file(folder / "prompt.safetensors")["ctx"])


def test_the_prompt_says_what_it_belongs_to(default):
    with safe_open(default[0] / "prompt.safetensors", framework="pt") as file:
        metadata = json.loads(file.metadata()["coop"])
        assert file.get_slice("ctx").get_shape() == [16, 256]
    assert (metadata["backbone"], metadata["dataset"], len(metadata["classnames"])) == ("tiny", "mini", 12)


def test_a_finished_run_is_not_computed_again(run, small, copied):
    before = {
        path: path.stat().st_mtime_ns for path in copied.iterdir() if path.name not in ("config.yaml", "train.log")
    }
    del before[copied / ".hydra"]
    again = run("train", *small, f"hydra.run.dir={copied}")
    assert again.code == 0
    assert "already finished" in again.err
    assert "zero-shot" in again.out
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_another_config_in_the_same_folder_is_refused(run, small, copied):
    refused = run("train", *small, "seed=2", f"hydra.run.dir={copied}")
    assert refused.code == 1
    assert "seed: 1 there, 2 here" in refused.error
    assert results_of(copied)["seed"] == 1


def test_the_same_command_twice_gives_the_same_prompt(run, small, finished, tmp_path):
    done = run("train", *small, "features=online", "num_workers=2", f"hydra.run.dir={tmp_path / 'again'}")
    assert done.code == 0, done.err
    first, second = (load_file(folder / "prompt.safetensors")["ctx"] for folder in (finished, tmp_path / "again"))
    assert torch.equal(first, second)
    of_the_machine = ("encode_seconds", "fit_seconds", "test_seconds", "step_seconds", "peak_memory_mb", "features")
    same = {key: value for key, value in results_of(finished).items() if key not in of_the_machine}
    assert {key: results_of(tmp_path / "again")[key] for key in same} == same


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["method.class_specific=true", "method.n_ctx=3"], {"trainable_params": 5 * 3 * 128, "class_specific": True}),
        (["method.n_ctx=3", "method.class_token_position=middle"], {"trainable_params": 3 * 128, "n_ctx": 3}),
        (['method.ctx_init="a photo of a"', "epochs=1"], {"n_ctx": 4, "trainable_params": 4 * 128, "epochs": 1}),
        (["method=zero_shot"], {"trainable_params": 0, "epochs": 0, "n_ctx": None}),
        (["augmentation=online", "num_workers=1"], {"augmentation": "online", "n_train": 20}),
        (["augmentation=views:2"], {"augmentation": "views:2"}),
        (["shots=-1"], {"shots": -1, "n_train": 30, "n_val": 10}),
        (["dataset.classes=base"], {"num_classes": 3, "n_train": 12, "n_test": 12}),
        (["dataset.classes=new"], {"num_classes": 2, "n_train": 8, "n_test": 8}),
        (["trainer.precision=bf16-mixed"], {"precision": "bf16-mixed"}),
        (["backbone.precision=pure_bf16", "backbone.name=half"], {"backbone": "half"}),
        (["optimizer.lr=0.02", "batch_size=100"], {"batch_size": 100}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_variants(run, small, tmp_path, overrides, expected):
    done = run("train", *small, *overrides, f"hydra.run.dir={tmp_path}")
    assert done.code == 0, done.err
    results = results_of(tmp_path)
    assert {key: results[key] for key in expected} == expected
    if "method=zero_shot" in overrides:
        assert results["test/acc"] == results["zero_shot/acc"]
    assert load_file(tmp_path / "prompt.safetensors").keys() == (set() if results["epochs"] == 0 else {"ctx"})


def test_words_as_context_before_any_step_are_zero_shot(run, small, tmp_path):
    """With a learning rate of next to nothing the prompt is the template still."""
    done = run(
        "train", *small, 'method.ctx_init="a photo of a"', "optimizer.lr=1e-12", "optimizer.warmup_lr=1e-12",
        f"hydra.run.dir={tmp_path}",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert results_of(tmp_path)["test/acc"] == results_of(tmp_path)["zero_shot/acc"]


def test_csv_logger_keeps_the_curves(run, small, tmp_path):
    done = run("train", *small, "logger=csv", f"hydra.run.dir={tmp_path}")
    assert done.code == 0, done.err
    with (tmp_path / "csv" / "version_0" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    accuracies = [float(row["val/acc"]) for row in rows if row["val/acc"] and row["epoch"]]
    assert len(accuracies) == 3
    final = [float(row["test/acc"]) for row in rows if row.get("test/acc")]
    assert final == [pytest.approx(results_of(tmp_path)["test/acc"], abs=1e-6)]


def test_wandb_disabled_is_no_failure(run, small, tmp_path):
    done = run("train", *small, "logger=wandb", f"hydra.run.dir={tmp_path}", WANDB_MODE="disabled")
    assert done.code == 0, done.err
    assert (tmp_path / "results.json").exists()


def test_several_seeds_in_one_command(run, small, tmp_path):
    done = run("train", "-m", *small, "seed=1,2", f"hydra.sweep.dir={tmp_path}")
    assert done.code == 0, done.err
    found = {results_of(path.parent)["seed"]: path.parent for path in tmp_path.rglob("results.json")}
    assert sorted(found) == [1, 2]
    prompts = [load_file(folder / "prompt.safetensors")["ctx"] for folder in found.values()]
    assert not torch.equal(*prompts)


def test_fewer_images_than_shots_is_a_warning_that_says_which(run, small, photographs, tmp_path):
    smallest = sorted(path.name for path in (photographs / "train").iterdir())[0].replace("_", " ")
    done = run("train", *small, "shots=7", f"hydra.run.dir={tmp_path}")
    assert done.code == 0, done.err
    assert f"fewer training images than shots=7, all are used: {smallest} (6)" in done.err
    assert results_of(tmp_path)["n_train"] == 30


def test_imagenets_layout_end_to_end(run, small_folder, photographs, work, tmp_path):
    """+exp=16shot_imagenet on 3 of its classes in ImageNet's folders; only the backbone is a small one."""
    import shutil

    wnids = ["n01440764", "n01443537", "n01484850"]
    for part, source in (("train", "train"), ("val", "test")):
        for wnid, folder in zip(wnids, sorted((photographs / source).iterdir()), strict=False):
            shutil.copytree(folder, tmp_path / "imagenet" / "images" / part / wnid)
    lines = [f"{wnid} {name}" for wnid, name in zip(wnids, ("tench", "goldfish", "great white shark"), strict=True)]
    (tmp_path / "imagenet" / "classnames.txt").write_text("\n".join(lines))
    done = run(
        "train", "+exp=16shot_imagenet", f"data_root={tmp_path}", "backbone=open_clip", "shots=2", "epochs=2",
        f"backbone.model=local-dir:{small_folder}", "logger=none", f"hydra.run.dir={tmp_path / 'run'}",
    )  # fmt: skip
    assert done.code == 0, done.err
    results = results_of(tmp_path / "run")
    assert (results["dataset"], results["augmentation"], results["n_ctx"]) == ("imagenet", "online", 16)
    assert (results["num_classes"], results["n_train"], results["n_val"], results["n_test"]) == (3, 6, 0, 12)
