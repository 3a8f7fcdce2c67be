"""Searches with Optuna go by the validation accuracy, and never by the test accuracy."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.usefixtures("plain")

pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")

FIXED = ["optimizer.lr=0.002", "optimizer.weight_decay=0.0005", "epochs=1"]


def search(sweep: Path, *overrides: str) -> list[str]:
    return ["-m", "+exp=search", *overrides, *FIXED, "hydra.sweeper.n_trials=6", f"hydra.sweep.dir={sweep}"]


def test_the_best_run_is_the_best_on_validation_images(run, small, tmp_path):
    """Both settings are there already, with figures that disagree: n_ctx=2 wins on test, n_ctx=3 on validation images."""
    done = run("train", "-m", *small, *FIXED, "method.n_ctx=2,3", f"hydra.sweep.dir={tmp_path}")
    assert done.code == 0, done.err
    for path in tmp_path.rglob("results.json"):
        results = json.loads(path.read_text())
        test, val = (0.875, 0.25) if results["n_ctx"] == 2 else (0.125, 0.75)
        path.write_text(json.dumps(results | {"test/acc": test, "val/acc": val}))
    done = run("train", *search(tmp_path, *small, "method.n_ctx=choice(2,3)"))
    assert done.code == 0, done.err
    best = yaml.safe_load((tmp_path / "optimization_results.yaml").read_text())
    assert best["best_params"] == {"method.n_ctx": 3}
    assert best["best_value"] == 0.75
    assert done.err.count("already finished") == 6, "what is there is not computed again"


def test_a_search_without_validation_images_is_refused_before_it_begins(run, small, photographs, tmp_path):
    shutil.copytree(photographs, tmp_path / "images", ignore=shutil.ignore_patterns("val"))
    args = search(tmp_path / "sweep", *small, f"dataset.path={tmp_path / 'images'}", "method.n_ctx=choice(2,3)")
    done = run("train", *args)
    assert done.code == 1
    assert done.error.startswith("a search goes by the accuracy on validation images, and this data set has none")
    assert not list((tmp_path / "sweep").rglob("last.ckpt"))


def test_trials_that_fail_are_recorded_and_the_search_goes_on(run, small, tmp_path):
    done = run("train", *search(tmp_path, *small, "method.n_ctx=choice(0,2)"))
    assert done.code == 1
    assert "1 of 2 runs finished, 1 failed" in done.err
    assert "Traceback" not in done.err
    best = yaml.safe_load((tmp_path / "optimization_results.yaml").read_text())
    assert best["best_params"] == {"method.n_ctx": 2}


def test_a_search_of_which_nothing_finishes(run, small, tmp_path):
    done = run("train", *search(tmp_path, *small, "method.n_ctx=0"))
    assert done.code == 1
    assert "method.n_ctx=0" in done.err
    assert done.error.startswith("no run of this search finished")
