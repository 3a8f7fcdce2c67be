"""Every method through the commands: what it trains, on an accelerator alone, and coop.evaluate finding it again.

The accelerator is a pretended one (`tests/pretend_device.py`).
"""

import json
from pathlib import Path

import pytest
import torch
from configs import names, written
from conftest import results_of
from methods import quick
from safetensors.torch import load_file
from test_device import check as check_device

import coop

pytestmark = pytest.mark.usefixtures("plain")

E, K = 64, 5
# Patches, class token, five positions, two norms, two layers (attention, MLP, two norms), projection.
LAYER = (4 * 64 * 64 + 4 * 64) + (2 * 64 * 256 + 256 + 64) + 2 * 128
TOWER = 3 * 16 * 16 * 64 + 64 + 5 * 64 + 2 * 128 + 2 * LAYER + 64 * 64
D = 128
META = E * (E // 16) + E // 16 + (E // 16) * D + D
META_TCP = E * (E // 4) + E // 4 + (E // 4) * 4 * D + 4 * D
# Steps that a random CLIP's accuracy feels.
LARGE = ["epochs=2", "optimizer.lr=0.5"]
COUPLED = {"trainable_params": 2 * 2 * 128 + 2 * (128 * 64 + 64), "epochs": 2}


RUNS = {
    "zero_shot": ([], {"trainable_params": 0, "epochs": 0, "chosen": []}),
    "no_template": (["method=zero_shot", "method.template='{}'"], {"trainable_params": 0, "epochs": 0}),
    "zero_shot_ensemble": ([], {"trainable_params": 0, "epochs": 0}),
    "own_ensemble": (
        ["method=zero_shot_ensemble", 'method.templates=["a {}.","the {}, indoors"]'],
        {"trainable_params": 0, "epochs": 0},
    ),
    "linear_probe": ([], {"trainable_params": K * E + K, "epochs": 0, "chosen": ["C"]}),
    "text_linear": (LARGE, {"trainable_params": E * E, "epochs": 2}),
    "text_bias": (LARGE, {"trainable_params": E, "epochs": 2, "class_specific": False}),
    "text_bias_per_class": (
        ["method=text_bias", "method.class_specific=true", *LARGE],
        {"trainable_params": K * E, "epochs": 2, "class_specific": True},
    ),
    "clip_adapter": (LARGE, {"trainable_params": E * E // 2, "epochs": 2, "chosen": ["ratio"]}),
    "tip_adapter": ([], {"trainable_params": 0, "epochs": 0, "chosen": ["alpha", "beta"]}),
    "tip_adapter_views": (
        ["method=tip_adapter", "augmentation=views:3", "method.alpha_max=50"],
        {"epochs": 0, "chosen": ["alpha", "beta"]},
    ),
    "tip_adapter_f": ([], {"trainable_params": 20 * E, "epochs": 20, "batch_size": 256, "chosen": ["alpha", "beta"]}),
    "kgcoop": (LARGE, {"trainable_params": 4 * D, "epochs": 2, "batch_size": 128, "n_ctx": 4}),
    "prograd": (LARGE, {"trainable_params": 16 * D, "epochs": 2, "n_ctx": 16}),
    "cocoop": ([*LARGE, "optimizer.lr=0.02", "batch_size=10"], {"trainable_params": 4 * D + META, "epochs": 2}),
    "cocoop_class": (
        ["method=cocoop", "method.condition=class", *LARGE, "batch_size=10"],
        {"trainable_params": 4 * D + META, "epochs": 2},
    ),
    "tcp": (["epochs=2"], {"trainable_params": 4 * D + META_TCP, "epochs": 2, "n_ctx": 4}),
    "plot": (["epochs=2"], {"trainable_params": 4 * 16 * D, "epochs": 2, "batch_size": 128}),
    "linear_probe_raw": (["method=linear_probe", "method.normalized=false"], {"epochs": 0, "chosen": ["C"]}),
    "clap": (["epochs=2", "augmentation=views:2"], {"trainable_params": K * E, "epochs": 2, "batch_size": 256}),
    "lp_pp": ([], {"trainable_params": K * E + 2 * K, "epochs": 0, "chosen": ["iteration"]}),
    "cross_modal": (
        ["method.iterations=150"],
        {"trainable_params": K * E, "epochs": 0, "chosen": ["batch_size", "iteration", "lr", "weight_decay"]},
    ),
    "cross_modal_adapter": (
        ["method.iterations=150", "method.lr=[0.001]", "method.weight_decay=[0.01]", "validation=none"],
        {"trainable_params": K * E + E * E // 2, "epochs": 0, "validation": "none", "val/acc": None},
    ),
    "cross_modal_partial": (
        ["method.init=random", "method.weight_decay=[0.001]"],
        {
            "trainable_params": K * E + LAYER + 128 + 64 * E,
            "epochs": 0,
            "chosen": ["batch_size", "iteration", "lr", "weight_decay"],
        },
    ),
    "tip_adapter_without_validation": (
        ["method=tip_adapter", "validation=none"],
        {"trainable_params": 0, "validation": "none", "val/acc": None, "chosen": []},
    ),
    "image_encoder": (LARGE, {"trainable_params": TOWER, "epochs": 2}),
    "image_encoder_views": (["method=image_encoder", "augmentation=views:2", *LARGE], {"epochs": 2}),
    "image_encoder_online": (["method=image_encoder", "augmentation=online", *LARGE], {"epochs": 2}),
    # Widths: image tower 64, text encoder 128; of two layers each, prompts' depths as in methods.
    "vpt": (LARGE, {"trainable_params": 2 * 8 * 64, "epochs": 2}),
    "ivlp": (LARGE, {"trainable_params": 2 * 2 * (64 + 128), "epochs": 2}),
    "ivlp_text": (["method=ivlp", "method.depth_vision=0", *LARGE], {"trainable_params": 2 * 2 * 128}),
    "maple": (LARGE, {"trainable_params": 2 * 2 * 128 + 2 * (128 * 64 + 64), "epochs": 2}),
    "promptsrc": (LARGE, {"trainable_params": 2 * 4 * (64 + 128), "epochs": 2}),
    "promptsrc_maple": (["augmentation=views:2", *LARGE], COUPLED),
    "dept": (LARGE, {"trainable_params": 16 * 128 + 4 * E + K * E + K, "epochs": 2}),
    "clip_lora": (LARGE, {"trainable_params": 3 * 2 * 2 * (2 * 64 + 4 * 128), "epochs": 2}),
    "clip_lora_text": (
        ["method=clip_lora", "method.encoder=text", "method.params=[q,o]", "method.layers=top3", *LARGE],
        {"trainable_params": 2 * 2 * 2 * 3 * 128, "epochs": 2},
    ),
    "prolip": (LARGE, {"trainable_params": 64 * E, "epochs": 2}),
    "two_stage": (LARGE, {"trainable_params": 2 * (6 * 64 + 9 * 128) + K * E, "epochs": 2}),
}


RUNS |= {name: (["epochs=2"], {"epochs": 2}) for name in names("method") if name not in RUNS}
SCORES = ("test/acc", "test/macro_acc", "test/ece", "zero_shot/acc", "zero_shot/ece")


# By default every config of conf/method; further variants of a method are slow.
CONFIGS = names("method")
RUN_NAMES = [name if name in CONFIGS else pytest.param(name, marks=pytest.mark.slow) for name in RUNS]


@pytest.mark.parametrize("name", RUN_NAMES)
def test_train_then_evaluate_on_the_device_alone(run, small, name, tmp_path):
    overrides, expected = RUNS[name]
    method = next((part.partition("=")[2] for part in overrides if part.startswith("method=")), name)
    tf32, device = name == "coop", "trainer.accelerator=pretend"
    own = [word for word in small if not word.startswith(("epochs", "batch_size"))]
    own += [] if "batch_size" in expected else ["batch_size=10"]
    options = [*own, *quick(method), *overrides, device, f"trainer.tf32={tf32}"]
    report = tmp_path / "train.json"
    done = run("train", *options, f"hydra.run.dir={tmp_path / 'run'}", COOP_TEST_PRETEND=str(report))
    assert done.code == 0, done.err
    check_device(report)
    results = results_of(tmp_path / "run")
    name_of_it = written("method", method)["name"]
    assert (results["method"], results["n_train"], results["n_val"], results["n_test"]) == (name_of_it, 20, 10, 20)
    # What is not trained in steps does not pass through `fit`, and is before it all the time.
    assert json.loads(report.read_text())["products"][f"{'after' if results['epochs'] else 'before'} pretend"] > 0
    assert sorted(results.pop("chosen")) == expected.get("chosen", [])
    assert {key: results[key] for key in expected if key != "chosen"} == {
        key: value for key, value in expected.items() if key != "chosen"
    }
    assert (results["test/ece"] == results["zero_shot/ece"]) is (name == "zero_shot"), "what was learned is tested"

    again, report = [f"run={tmp_path / 'run'}", "accelerator=pretend", "num_workers=0"], tmp_path / "evaluate.json"
    done = run("evaluate", *again, f"hydra.run.dir={tmp_path / 'again'}", COOP_TEST_PRETEND=str(report))
    assert done.code == 0, done.err
    seen = json.loads(report.read_text())
    assert seen["cpu"] == {}
    assert seen["products"]["before pretend"] > 0
    assert seen["tf32"] is tf32
    (entry,) = results_of(tmp_path / "again")["targets"].values()
    assert {key: entry[key] for key in SCORES} == {key: results[key] for key in SCORES}


@pytest.mark.parametrize(
    "name, precision",
    [("maple", "bf16-mixed"), ("maple", "16-mixed"), ("clip_lora", "16-mixed"), ("two_stage", "bf16-mixed")],
)
def test_towers_in_mixed_precision(run, small, name, precision, tmp_path):
    """What is learned is float32 and finite; evaluation computes as the run did."""
    options = [*small, *quick(name), "epochs=1", "batch_size=25", f"trainer.precision={precision}"]
    done = run("train", *options, f"hydra.run.dir={tmp_path / 'run'}")
    assert done.code == 0, done.err
    learned = load_file(tmp_path / "run" / "prompt.safetensors")
    assert all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in learned.values())
    done = run("evaluate", f"run={tmp_path / 'run'}", "num_workers=0", f"hydra.run.dir={tmp_path / 'again'}")
    assert done.code == 0, done.err
    (entry,) = results_of(tmp_path / "again")["targets"].values()
    results = results_of(tmp_path / "run")
    assert {key: entry[key] for key in SCORES} == {key: results[key] for key in SCORES}


@pytest.mark.parametrize("name", ["linear_probe", "tip_adapter", "text_bias", "lp_pp"])
def test_what_belongs_to_its_classes_is_not_moved_to_others(run, small, photographs, name, tmp_path):
    options = ["method.class_specific=true", "epochs=1"] if name == "text_bias" else []
    options += ["dataset.classes=base", *quick(name), f"hydra.run.dir={tmp_path / 'run'}"]
    assert run("train", *small, *options).code == 0
    done = run("evaluate", f"run={tmp_path / 'run'}", "dataset=folder", f"dataset.path={photographs}", "dataset.classes=new", "num_workers=0",
               f"hydra.run.dir={tmp_path / 'new'}")  # fmt: skip
    assert done.code == 1
    assert "its classes are not those that this run learned on" in done.error


@pytest.mark.parametrize(
    "name", ["clip_adapter", "text_linear", "image_encoder", "cocoop", "tcp", "plot", "maple", "dept", "two_stage"]
)
def test_what_is_the_same_for_all_classes_is_moved_to_others(run, small, name, tmp_path):
    done = run("train", *small, *quick(name), "+exp=base_to_new", "seed=1", "epochs=1", f"hydra.run.dir={tmp_path}")
    assert done.code == 0, done.err
    results = results_of(tmp_path)
    assert (results["num_classes"], results["targets"]["folder:new"]["num_classes"]) == (3, 2)


def test_the_trained_tower_and_nothing_else_is_saved(run, small, tmp_path):
    done = run("train", *small, "method=image_encoder", "epochs=2", f"hydra.run.dir={tmp_path}")
    assert done.code == 0, done.err
    saved = load_file(tmp_path / "prompt.safetensors")
    assert all(key.startswith("tower.visual.") for key in saved)
    assert sum(tensor.numel() for tensor in saved.values()) == TOWER


def test_without_validation_images(run, small, tmp_path):
    """A folder with train and test alone: what is left to choose is chosen otherwise, and said."""
    data = tmp_path / "data"
    source = Path(coop.__file__).parent / "assets" / "mini"
    for part, shots in (("train", slice(0, 4)), ("test", slice(4, 6))):
        for name in ("ibis", "ketch", "llama"):
            folder = data / part / name
            folder.mkdir(parents=True)
            for path in sorted((source / "images" / name).iterdir())[shots]:
                (folder / path.name).write_bytes(path.read_bytes())
    options = [*small, "shots=4", "dataset=folder", f"dataset.path={data}", "epochs=1"]
    for method, said, expected in (
        ("linear_probe", "C is chosen on 3 held-out training images", ["C"]),
        ("tip_adapter", "alpha and beta stay at 1.17 and 1", []),
        ("clip_adapter", "no validation images, the ratio stays at 0.2", ["ratio"]),
    ):
        done = run("train", *options, *quick(method), f"hydra.run.dir={tmp_path / method}")
        assert done.code == 0, done.err
        assert said in done.err
        assert sorted(results_of(tmp_path / method)["chosen"]) == expected

    done = run("train", *options, "shots=1", "method=linear_probe", f"hydra.run.dir={tmp_path / 'one'}")
    assert done.code == 1
    assert "give a value, for instance method.C=0.3" in done.error


@pytest.mark.slow
def test_baselines_beat_zero_shot_on_photographs(run, tmp_path):
    """The bundled CLIP, 4 shots of 25 classes: what sees labeled images does far better than what does not."""
    accuracy = {}
    caltech = ["method.alpha=3", "method.alpha_max=5", "method.beta_max=12"]
    for method in ("linear_probe", "clip_adapter", "text_linear", "tip_adapter", "tip_adapter_f"):
        options = caltech if method.startswith("tip") else []
        done = run("train", f"method={method}", "shots=4", "features=cached", "logger=none", *options,
                   f"hydra.run.dir={tmp_path / method}")  # fmt: skip
        assert done.code == 0, done.err
        results = results_of(tmp_path / method)
        accuracy[method] = results["test/acc"] - results["zero_shot/acc"]
    assert all(gain > 0.03 for gain in accuracy.values()), accuracy
