"""python -m coop.evaluate: a trained prompt on its own and on other data sets."""

import json
import shutil
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("plain")


def results_of(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def class_specific(run, small, work) -> Path:
    folder = work / "class_specific"
    done = run("train", *small, "method.class_specific=true", "method.n_ctx=2", f"hydra.run.dir={folder}")
    assert done.code == 0, done.err
    return folder


def test_on_its_own_test_set_it_finds_what_training_found(run, finished, tmp_path):
    done = run("evaluate", f"run={finished}", "features=cached", f"hydra.run.dir={tmp_path}")
    assert done.code == 0, done.err
    results, trained = results_of(tmp_path), results_of(finished)
    assert results["task"] == "evaluate"
    entry = results["targets"]["folder"]
    for key in ("test/acc", "test/macro_acc", "zero_shot/acc", "zero_shot/macro_acc"):
        assert entry[key] == pytest.approx(trained[key], abs=1e-6)
    assert (entry["n_test"], entry["num_classes"]) == (20, 5)
    assert {key: results[key] for key in ("backbone", "shots", "seed", "n_ctx")} == {
        key: trained[key] for key in ("backbone", "shots", "seed", "n_ctx")
    }
    assert f"{100 * entry['test/acc']:.2f}" in done.out
    assert trained["task"] == "train", "the run's own results stay as they were"


def test_on_a_folder_of_other_classes(run, finished, photographs, tmp_path):
    """A unified context is moved to new class names, and to a split made by the run's seed."""
    for index, source in enumerate(sorted((photographs / "train").iterdir())[:3]):
        shutil.copytree(source, tmp_path / "data" / f"thing_{index}")
    done = run(
        "evaluate", f"run={finished}", "dataset=folder", f"dataset.path={tmp_path / 'data'}",
        "num_workers=0", f"hydra.run.dir={tmp_path / 'out'}",
    )  # fmt: skip
    assert done.code == 0, done.err
    entry = results_of(tmp_path / "out")["targets"]["folder"]
    assert (entry["num_classes"], entry["n_test"], entry["split"]) == (3, 6, "generated")


def test_on_shifted_sets(run, finished, tmp_path):
    done = run(
        "evaluate", f"run={finished}", "targets=[mini,mini_blur]", "features=cached", "num_workers=0",
        f"hydra.run.dir={tmp_path}",
    )  # fmt: skip
    assert done.code == 0, done.err
    targets = results_of(tmp_path)["targets"]
    assert list(targets) == ["mini", "mini_blur"]
    for entry in targets.values():
        assert (entry["n_test"], entry["num_classes"]) == (500, 25)
        assert 0 <= entry["zero_shot/acc"] <= 1
    assert done.out.count("zero-shot") == 3  # the source stands first


def test_a_template_of_ones_own_for_zero_shot(run, finished, photographs, tmp_path):
    done = run(
        "evaluate", f"run={finished}", "dataset=folder", f"dataset.path={photographs}", "dataset.name=mine",
        "dataset.template='a blurry picture of the {}.'", "num_workers=0", f"hydra.run.dir={tmp_path}",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert results_of(tmp_path)["targets"]["mine"]["test/acc"] == results_of(finished)["test/acc"]


def test_class_specific_on_its_own_classes(run, class_specific, tmp_path):
    done = run("evaluate", f"run={class_specific}", "num_workers=0", f"hydra.run.dir={tmp_path}")
    assert done.code == 0, done.err
    assert results_of(tmp_path)["targets"]["folder"]["test/acc"] == results_of(class_specific)["test/acc"]


def test_class_specific_on_other_classes_is_refused_with_a_reason(run, class_specific, tmp_path):
    refused = run("evaluate", f"run={class_specific}", "targets=[mini]", f"hydra.run.dir={tmp_path}")
    assert refused.code == 1
    assert "class-specific" in refused.error
    assert "20 were never seen" in refused.error
    assert "method.class_specific=false" in refused.error
    assert not (tmp_path / "results.json").exists()


def test_another_backbone_is_refused(run, finished, tmp_path):
    refused = run("evaluate", f"run={finished}", "backbone=tiny", f"hydra.run.dir={tmp_path}")
    assert refused.code == 1
    assert "this is tiny" in refused.error
    assert "works only on the backbone it was learned on" in refused.error


def test_the_same_backbone_from_another_place_is_accepted(run, finished, small_folder, tmp_path):
    moved = shutil.copytree(small_folder, tmp_path / "moved")
    done = run(
        "evaluate", f"run={finished}", "backbone=open_clip", f"backbone.model=local-dir:{moved}", "num_workers=0",
        f"hydra.run.dir={tmp_path / 'out'}",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert results_of(tmp_path / "out")["targets"]["folder"]["test/acc"] == results_of(finished)["test/acc"]


def test_into_the_runs_own_folder_is_refused(run, copied):
    """It would put the evaluation in the place of the run's own results."""
    refused = run("evaluate", f"run={copied}", "num_workers=0", f"hydra.run.dir={copied}")
    assert results_of(copied)["task"] == "train"
    assert refused.code == 1
    assert "hydra.run.dir" in refused.error


def test_targets_beside_a_dataset_are_refused(run, finished, photographs, tmp_path):
    """One of the two would be left out without a word."""
    refused = run(
        "evaluate", f"run={finished}", "targets=[mini_blur]", "dataset=folder", f"dataset.path={photographs}",
        "features=cached", f"hydra.run.dir={tmp_path}",
    )  # fmt: skip
    assert refused.code == 1
    assert "targets" in refused.error


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["run: "]),
        (["run=nowhere"], ["nowhere/prompt.safetensors: no such file", "finished run"]),
        (["run={run}", "targets=[mini,mini_blurr]"], ["mini_blurr", "mini_blur", "near matches"]),
        (["run={run}", "targets=mini"], ["targets"]),
        (["run={run}", "targett=[mini]"], ["targett", "did you mean targets"]),
        (["run={run}", "+targett=[mini]"], ["targett", "targets"]),
        (["run={run}", "backbone=vit_b61"], ["backbone=vit_b61", "near matches: vit_b16"]),
        (["run={run}", "dataset=minii"], ["dataset=minii", "near matches: mini"]),
        (["run={run}", "dataset=caltech101"], ["data_root"]),
        (["run={run}", "targets=[caltech101]", "data_root=/nowhere"], ["data_root=/nowhere", "does not exist"]),
        (["run={run}", "dataset=folder", "dataset.path=/nowhere"], ["/nowhere", "does not exist"]),
        (["run={run}", "dataset=folder"], ["dataset.path=DIR"]),
        (["run={run}", "dataset.template='x {{}}'"], ["dataset"]),
        (["run={run}", "accelerator=abacus"], ["accelerator", "abacus"]),
        (["run={run}", "num_workers=-1"], ["num_workers=-1"]),
        (["run={run}", "features=disk"], ["features=disk", "online, cached"]),
    ],
    ids=lambda value: " ".join(value) if value and "run=" not in value[-1] else "",
)
def test_bad_arguments(run, finished, tmp_path, arguments, parts):
    refused = run("evaluate", *(text.format(run=finished) for text in arguments), f"hydra.run.dir={tmp_path}")
    assert refused.code == 1
    assert all(part in refused.error for part in parts), refused.error
    assert not (tmp_path / "results.json").exists()


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("prompt.safetensors", None), ("prompt.safetensors", "hello"), ("config.yaml", None), ("config.yaml", "{"),
        ("results.json", None), ("results.json", "{"),
    ],
)  # fmt: skip
def test_damaged_run_folders(run, copied, tmp_path, file, content):
    """Said before anything is encoded."""
    if content is None:
        (copied / file).unlink()
    else:
        (copied / file).write_text(content)
    refused = run("evaluate", f"run={copied}", f"hydra.run.dir={tmp_path / 'out'}")
    assert refused.code == 1
    assert str(copied / file) in refused.error
    assert "image/s" not in refused.err
