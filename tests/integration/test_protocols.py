"""Leaderboards, support sets of unequal classes and those of others, through the commands."""

import json
from collections import Counter
from pathlib import Path

import pytest
import yaml
from conftest import results_of

from coop.cli.announce import summary
from coop.data.readers.folder import read_folder
from coop.data.sampling import sample
from coop.runs.sweep import Standing


def test_a_leaderboard_says_what_was_refused_and_computes_nothing_twice(run, small, tmp_path):
    """Prompts in front of nine layers do not fit the small CLIP: MaPLe is refused, the others go on."""
    study = ["-m", "+exp=leaderboard", *(word for word in small if "shots" not in word and "epochs" not in word),
             "epochs=1", "method=coop,maple,zero_shot", "shots=1,2", "seed=1", f"hydra.sweep.dir={tmp_path}"]  # fmt: skip
    done = run("train", *study)
    assert done.code == 1
    assert "4 of 6 runs finished, 2 failed" in done.err
    said = done.err.partition("2 failed\n")[2]
    assert said.count("failed: ") == 2 and said.count("method.depth=9: the text encoder of") == 1
    assert "method=maple" in said and "coop" not in said.partition("method.depth")[0].replace("backbone", "")
    results = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("results.json")}
    assert len(results) == 4
    again = run("train", *study)
    assert again.code == 1 and again.err.count("nothing is computed again") == 4
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("results.json")} == results


def test_many_failures_of_one_kind_are_said_once(tmp_path):
    names = [f"seed={n}" for n in range(5)]
    failed = {tmp_path / name: "no layers" for name in names} | {tmp_path / "seed=9": "no data"}
    assert summary(tmp_path, Standing(finished=[tmp_path / "a"], failed=failed)) == [
        f"{tmp_path}: 1 of 7 runs finished, 6 failed",
        "failed: seed=0", "failed: seed=1", "failed: seed=2", "failed: 2 more", "    no layers",
        "failed: seed=9", "    no data",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def whole(photographs):
    """The data set as a run reads it."""
    return read_folder(None, path=str(photographs), seed=1)


def trained_on(folder: Path) -> dict:
    return yaml.safe_load((folder / "config.yaml").read_text())["dataset"]


def test_shots_of_each_class(run, small, whole, tmp_path):
    counts = tmp_path / "counts.csv"
    counts.write_text("class,count\n" + "".join(f"{name},{n}\n" for n, name in enumerate(whole.classnames, 1)))
    options = [word for word in small if "shots" not in word]
    for name, shots in (("file", str(counts)), ("list", "[1,2,3,4,5]")):
        done = run("train", *options, f"shots={shots}", "method=tip_adapter", f"hydra.run.dir={tmp_path / name}")
        assert done.code == 0, done.err
        results = results_of(tmp_path / name)
        assert (results["shots"], results["n_train"], results["n_val"]) == (3, 15, 1 + 2 * 4)
    listed = [[name, n] for n, name in enumerate(whole.classnames, 1)]
    assert trained_on(tmp_path / "file")["counts"] == listed
    assert results_of(tmp_path / "file")["test/acc"] == results_of(tmp_path / "list")["test/acc"]
    done = run("train", *options, "shots=[1,2,3]", f"hydra.run.dir={tmp_path / 'short'}")
    assert done.code == 1
    assert "shots: 3 numbers, and the data set has 5 classes; give one for each" in done.error
    again = run("train", *options, "shots=3", "method=tip_adapter", f"hydra.run.dir={tmp_path / 'list'}")
    assert again.code == 1 and "dataset.counts: [1, 2, 3, 4, 5] there, None here" in again.error


def test_one_file_of_others_for_each_seed(run, small, whole, photographs, tmp_path):
    """Nothing is sampled: each seed trains on the images of its own file, and tests on the data set's."""
    for seed in (1, 12):
        items = sample(whole, 2, 100 + seed).train
        rows = [{"impath": str(Path(item.path).relative_to(photographs.parent)), "label": item.label} for item in items]
        (tmp_path / f"shots_2-seed_{seed}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pattern = f"dataset.manifest={tmp_path}/shots_2-seed_${{seed}}.jsonl"
    options = [word for word in small if "shots" not in word]
    study = [
        "-m",
        *options,
        "shots=2",
        "seed=1,12",
        "method=linear_probe",
        pattern,
        f"hydra.sweep.dir={tmp_path / 'runs'}",
    ]
    done = run("train", *study)
    assert done.code == 0, done.err
    configs = [
        yaml.safe_load(path.read_text())
        for path in (tmp_path / "runs").rglob("config.yaml")
        if ".hydra" not in str(path)
    ]
    assert len({cfg["dataset"]["manifest_sha256"] for cfg in configs}) == 2
    found = [json.loads(path.read_text()) for path in (tmp_path / "runs").rglob("results.json")]
    assert Counter(results["n_train"] for results in found) == {10: 2}
    assert all(results["n_test"] == len(whole.test) and results["n_val"] == 0 for results in found)
    assert "(2)" in done.out, "two seeds of one setting"


def test_zero_shot_needs_no_training_images(run, small, tmp_path):
    """The shifted sets have none; what learns from images is refused there."""
    options = [word for word in small if "dataset" not in word]
    done = run("train", *options, "dataset=mini_blur", "method=zero_shot", f"hydra.run.dir={tmp_path}")
    assert done.code == 0, done.err
    results = results_of(tmp_path)
    assert (results["n_train"], results["n_test"], results["uses"]) == (0, 500, ["class descriptions"])
    assert results["test/acc"] == results["zero_shot/acc"] and results["step_seconds"] is None
    done = run("train", *options, "dataset=mini_blur", f"hydra.run.dir={tmp_path / 'coop'}")
    assert done.code == 1 and "dataset=mini_blur: has no training images" in done.error
