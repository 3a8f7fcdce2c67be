"""Runs that are tested on other data too: shifted domains, own folders, new classes."""

import json
import shutil
from pathlib import Path

import pytest
from configs import composed
from hydra import initialize_config_dir

from coop.config import conf_dir
from coop.evaluation.predictions import ood_detection, read_predictions
from coop.evaluation.targets import read_targets, target_configs


def results_of(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def domain(photographs, work) -> Path:
    """A user's own second domain: other photographs of three of the classes, in class folders."""
    folder = work / "a friend's domain"
    for source in sorted((photographs / "test").iterdir())[:3]:
        shutil.copytree(source, folder / source.name)
    return folder


@pytest.mark.parametrize("method", ["coop", "linear_probe"])
def test_training_and_evaluation_agree_on_targets(run, small, domain, tmp_path, method):
    """A domain with some of the classes: the context moves, a linear probe chooses among these classes."""
    done = run(
        "train", *small, f"method={method}", f'targets=[mini_blur,"{domain}"]', f"hydra.run.dir={tmp_path / 'run'}"
    )
    if method == "linear_probe":  # the bundled shifts have classes that it has never seen
        assert done.code == 1
        assert "mini_blur: its classes are not those that this run learned on (folder; 20 were never seen" in done.error
        done = run("train", *small, f"method={method}", f'targets=["{domain}"]', f"hydra.run.dir={tmp_path / 'run'}")
    assert done.code == 0, done.err
    trained = results_of(tmp_path / "run")
    entry = trained["targets"]["a friend's domain"]
    assert (entry["num_classes"], entry["split"]) == (3, "generated")
    assert "a friend's domain: zero-shot" in done.out

    again = run(
        "evaluate", f"run={tmp_path / 'run'}", f'targets=["{domain}"]', f"hydra.run.dir={tmp_path / 'evaluated'}"
    )
    assert again.code == 0, again.err
    other = results_of(tmp_path / "evaluated")["targets"]["a friend's domain"]
    for key in ("n_test", "test/acc", "test/macro_acc", "test/ece", "zero_shot/acc"):
        assert other[key] == pytest.approx(entry[key], abs=1e-6)


def test_a_target_that_is_not_there_is_named_before_anything_is_trained(run, small, tmp_path):
    done = run("train", *small, "targets=[mini_blurr]", f"hydra.run.dir={tmp_path}")
    assert done.code == 1
    assert "targets: there is no data set mini_blurr, and no such folder; near matches: mini_blur" in done.error
    assert not (tmp_path / "last.ckpt").exists()


def test_base_to_new(run, small, tmp_path):
    done = run("train", *small, "+exp=base_to_new", "seed=1", f"hydra.run.dir={tmp_path}")
    assert done.code == 0, done.err
    results = results_of(tmp_path)
    new = results["targets"]["folder:new"]
    assert (results["num_classes"], new["num_classes"]) == (3, 2)
    assert results["n_test"] + new["n_test"] == 20
    for name in ("test", "zero_shot"):
        base_acc, new_acc = results[f"{name}/acc"], new[f"{name}/acc"]
        expected = 2 / (1 / base_acc + 1 / new_acc) if base_acc and new_acc else 0.0
        assert results[f"{name}/harmonic_mean"] == pytest.approx(expected, abs=1e-9)
    assert "harmonic mean of base and new" in done.out
    kept = read_predictions(tmp_path)
    assert {name: len(of["confidence"]) for name, of in kept.items()} == {
        "test": results["n_test"], "targets/folder:new": new["n_test"], "ood": new["n_test"]
    }  # fmt: skip
    assert (kept["targets/folder:new"]["label_rank"] == 0).mean() == pytest.approx(new["test/acc"])
    assert kept["ood"]["predicted"].max() < 3  # among the base classes
    expected = ood_detection(kept["test"]["confidence"], kept["ood"]["confidence"])
    assert (results["test/auroc"], results["test/fpr95"]) == (expected["auroc"], expected["fpr95"])
    assert results["step_seconds"] > 0 and results["peak_memory_mb"] > 50 and results["uses"] == []
    evaluated = tmp_path / "evaluated"
    done = run("evaluate", f"run={tmp_path}", "targets=[:new]", f"hydra.run.dir={evaluated}")
    assert done.code == 0, done.err
    assert results_of(evaluated)["test/auroc"] == pytest.approx(results["test/auroc"], abs=1e-6)
    assert set(read_predictions(evaluated)) == {"targets/folder:new", "ood"}


def test_the_bundled_study_names_data_sets_that_there_are():
    cfg = composed("+exp=domain_generalization_mini")
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        targets = read_targets(target_configs(cfg.targets, cfg.dataset, cfg.seed), cfg.data_root, cfg.seed)
    images = {target.name: len(target.splits.test) for target in targets}
    assert images == dict.fromkeys(("mini_blur", "mini_grayscale", "mini_noise", "mini_sketch"), 500)


@pytest.mark.parametrize("exp", ["domain_generalization", "cross_dataset"])
def test_a_study_names_the_first_data_set_that_is_not_there(run, small, tmp_path, exp):
    """Before training."""
    done = run("train", *small, f"+exp={exp}", "method=coop", "seed=1", "epochs=1", f"hydra.run.dir={tmp_path}")
    assert done.code == 1
    assert "data_root" in done.error


def test_a_run_shows_how_it_went(run, small, tmp_path):
    """history, per-class accuracy and nearest words lie in the run's folder, whole, and agree with results.json."""
    done = run("train", *small, f"hydra.run.dir={tmp_path}")
    assert done.code == 0, done.err
    results = results_of(tmp_path)
    per_class, history, words = (
        json.loads((tmp_path / f"{name}.json").read_text()) for name in ("per_class", "history", "words")
    )
    accuracies = [entry["acc"] for entry in per_class["classes"]]
    assert sum(accuracies) / len(accuracies) == pytest.approx(results["test/macro_acc"], abs=1e-6)
    assert per_class["calibration"]["ece"] == pytest.approx(results["test/ece"], abs=1e-6)
    wrong = round((1 - results["test/acc"]) * results["n_test"])
    assert sum(pair["count"] for pair in per_class["confused"]) == wrong
    records = history["epochs"]
    assert [record["epoch"] for record in records] == [1, 2, 3]
    assert records[0]["lr"] == pytest.approx(1e-5)
    assert records[0]["ctx_moved"] < records[-1]["ctx_moved"]
    assert [len(record["ctx_moved"]) for record in records] == [16] * 3
    assert [vector["vector"] for vector in words["vectors"]] == list(range(1, 17))
    for name in ("history.png", "per_class.png"):
        assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"
