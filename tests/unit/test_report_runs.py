"""Reading runs: what is taken, what is left out and why, and what decides that two runs are the same."""

import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from synthetic_runs import write_evaluation, write_run

from coop.errors import CoopError
from coop.report.published import read_published
from coop.report.records import CONFIG, ERROR, keys_of, read_runs, zero_shot_beside
from coop.report.study import make_study


def keys_of_rows(runs):
    """The keys that each row has."""
    rows = runs[keys_of(runs)].to_dict("records")
    return [{key: value for key, value in row.items() if value is not None} for row in rows]


def test_train_runs_are_found_at_any_depth(tmp_path):
    write_run(tmp_path / "a", acc=0.7, seed=1)
    write_run(tmp_path / "study/dataset=caltech101,seed=2", acc=0.8, seed=2)
    found = read_runs([tmp_path])
    assert found.runs[["seed", "acc", "macro_acc"]].to_numpy() == pytest.approx(
        np.array([[1, 0.7, 0.69], [2, 0.8, 0.79]])
    )
    assert found.runs["zero_shot"].tolist() == [0.6, 0.6]
    assert not found.left_out and not found.unfinished


def test_the_same_folder_twice_counts_once(tmp_path):
    write_run(tmp_path / "a/b")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    (tmp_path / "a/begun").mkdir()
    (tmp_path / "a/begun/config.yaml").write_text("shots: 1\n")
    found = read_runs([tmp_path, tmp_path / "a", tmp_path / "link/b"])
    assert len(found.runs) == 1
    assert len(found.unfinished) == 1


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"task": "train", "meth', "not readable as JSON, perhaps half-written"),
        ("", "not readable as JSON"),
        ("[1, 2]", "holds a list"),
        ("[" * 100_000, "not readable as JSON"),
        (b"\xff\xfe\x00", "not readable as JSON"),
        ('{"accuracy": 0.9}', '"task" is None'),
    ],
    ids=["half-written", "empty", "list", "nested", "bytes", "other"],
)
def test_files_that_are_not_results_are_named(tmp_path, content, reason):
    write_run(tmp_path / "good")
    (tmp_path / "bad").mkdir()
    path = tmp_path / "bad" / "results.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    found = read_runs([tmp_path])
    assert len(found.runs) == 1
    ((named, why),) = found.left_out
    assert named == path and why.startswith(reason)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"method": None}, '"method" is not there'),
        ({"seed": "1"}, "\"seed\" is '1'; expected int"),
        ({"shots": True}, '"shots" is True; expected int'),
        ({"n_ctx": "16"}, "\"n_ctx\" is '16'; expected int"),
        ({"split": ["a"]}, "\"split\" is ['a']; expected str"),
        ({"test/acc": None}, '"test/acc" is None; expected an accuracy from 0 to 1'),
        ({"test/acc": 94.2}, '"test/acc" is 94.2; expected'),
        ({"test/acc": math.nan}, '"test/acc" is nan; expected'),
        ({"zero_shot/acc": True}, '"zero_shot/acc" is True; expected'),
        ({"task": "evaluate"}, '"targets" is not there'),
        ({"task": "predict"}, "\"task\" is 'predict'"),
    ],
)
def test_results_with_a_wrong_key_are_named(tmp_path, changed, reason):
    write_run(tmp_path / "good")
    write_run(tmp_path / "bad", **changed)
    found = read_runs([tmp_path])
    assert len(found.runs) == 1
    assert [why.startswith(reason) for _, why in found.left_out] == [True], found.left_out


def test_a_wrong_target_leaves_the_whole_file_out(tmp_path):
    write_run(tmp_path / "run")
    write_evaluation(tmp_path / "evaluated", tmp_path / "run", {"mini": 0.5, "other": 0.4}, other={"split": {}})
    found = read_runs([tmp_path])
    assert not found.runs["kind"].ne("own").any()
    assert found.left_out[0][1] == '"split" is {}; expected str'


def test_unfinished_runs_are_named_and_other_tools_files_are_not(tmp_path):
    write_run(tmp_path / "good")
    for folder in ("begun", "failed", "good/.hydra", "good/wandb/offline-run-1/files"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / CONFIG).write_text("shots: 1\n")
    (tmp_path / "failed" / ERROR).write_text("Traceback\ndtd: 3 images are missing\n")
    (tmp_path / "refused").mkdir()
    (tmp_path / "refused" / ERROR).write_text("shots=0: give 1 or more\n")
    assert read_runs([tmp_path]).unfinished == [
        (tmp_path / "begun", "no result yet"),
        (tmp_path / "failed", "failed: dtd: 3 images are missing"),
        (tmp_path / "refused", "failed: shots=0: give 1 or more"),
    ]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_folders_that_cannot_be_read_are_named(tmp_path):
    write_run(tmp_path / "good")
    (tmp_path / "closed").mkdir(mode=0)
    found = read_runs([tmp_path])
    assert found.left_out == [(tmp_path / "closed", "cannot be read (Permission denied)")]


def test_nothing_to_read(tmp_path):
    with pytest.raises(CoopError, match=r"gone: no such folder"):
        read_runs([tmp_path / "gone"])
    with pytest.raises(CoopError, match=r"no finished run beneath; .* python -m coop\.train"):
        read_runs([tmp_path])
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(CoopError, match=r"Left out:\n .*results\.json: not readable as JSON"):
        read_runs([tmp_path])


def test_a_file_among_the_folders_is_left_out(tmp_path):
    write_run(tmp_path / "good")
    (tmp_path / "multirun.yaml").write_text("")
    found = read_runs(sorted(tmp_path.iterdir()))
    assert len(found.runs) == 1
    assert found.left_out == [(tmp_path / "multirun.yaml", "not a folder")]


def keys_of_run(tmp_path, name="run", **changed):
    write_run(tmp_path / name, **changed)
    (keys,) = keys_of_rows(read_runs([tmp_path / name]).runs)
    return keys


def test_the_config_adds_what_results_do_not_record(tmp_path):
    keys = keys_of_run(tmp_path, config={"method": {"ctx_init": "a photo of a"}, "optimizer": {"lr": 0.01}})
    assert keys["method.ctx_init"] == "a photo of a"
    assert keys["optimizer.lr"] == 0.01
    assert "config.yaml" not in keys
    assert "seed" not in keys and "n_train" not in keys and "features" not in keys


@pytest.mark.parametrize(
    "config",
    [
        {"method": {"checkpoint": True, "class_chunk": 50}},
        {"method": {"n_ctx": 16}},
        {"method": {"template": "a photo of a {}."}},
        {"dataset": {"image_folders": ["elsewhere"]}},
        {"backbone": {"cache_dir": "/elsewhere"}},
    ],
)
def test_keys_that_change_nothing_do_not_count(tmp_path, config):
    assert keys_of_run(tmp_path, "plain") == keys_of_run(tmp_path, "other", config=config)


def test_files_may_lie_elsewhere(tmp_path):
    there = keys_of_run(
        tmp_path, "there", backbone="tiny", config={"backbone": {"model": "local-dir:/there/tiny_clip"}}
    )
    here = keys_of_run(tmp_path, "here", backbone="tiny", config={"backbone": {"model": "local-dir:/here/tiny_clip"}})
    assert there == here and here["backbone.model"] == "tiny_clip"
    assert keys_of_run(tmp_path, "file", pretrained="/there/RN50.pt") == keys_of_run(
        tmp_path, "file2", pretrained="RN50.pt"
    )


@pytest.mark.parametrize("damage", ["missing", "torn", "other"])
def test_a_run_without_its_config_says_so(tmp_path, damage):
    write_run(tmp_path / "run")
    config = tmp_path / "run/config.yaml"
    if damage == "missing":
        config.unlink()
    else:
        config.write_text("optimizer: {lr: 0.0" if damage == "torn" else "- a list\n")
    assert read_runs([tmp_path]).runs["config.yaml"].tolist() == ["not there"]


def test_an_optimizer_that_was_not_used_does_not_count(tmp_path):
    keys = keys_of_run(tmp_path, method="linear_probe", epochs=0)
    assert not any(key.startswith("optimizer.") for key in keys)


def test_zero_shot_runs_lose_what_means_nothing_to_them(tmp_path):
    write_run(tmp_path / "a", method="zero_shot", acc=0.6, shots=16, epochs=0)
    write_run(tmp_path / "b", method="zero_shot", acc=0.6, shots=1, epochs=0, augmentation="none")
    runs = read_runs([tmp_path]).runs
    first, second = keys_of_rows(runs)
    assert first == second == keys_of_rows(zero_shot_beside(runs))[0]
    assert first["shots"] == 0


def test_evaluations_have_a_score_per_target_and_one_for_the_source(tmp_path):
    write_run(tmp_path / "run", acc=0.9)
    write_evaluation(tmp_path / "evaluated", tmp_path / "run", {"blur": 0.5, "noise": 0.4}, noise={"n_test": 7})
    runs = read_runs([tmp_path]).runs
    transferred = runs[runs["kind"] == "transfer"]
    assert len(runs) - len(transferred) == 1
    assert transferred[["dataset", "acc"]].to_numpy().tolist() == [["caltech101", 0.9], ["blur", 0.5], ["noise", 0.4]]
    noise = keys_of_rows(transferred)[2]
    assert noise["n_test"] == 7 and noise["trained_on"] == "caltech101"
    assert noise["optimizer.lr"] == 0.002  # of the run's config
    assert "dataset.template" not in noise  # the run's, not the target's
    assert zero_shot_beside(transferred)["acc"].tolist() == pytest.approx([0.6, 0.4, 0.3])


def test_an_evaluation_on_new_classes_of_the_source(tmp_path):
    write_run(tmp_path / "run", acc=0.9, classes="base")
    new = {"classes": "new"}
    write_evaluation(tmp_path / "evaluated", tmp_path / "run", {"caltech101": 0.5}, caltech101=new)
    runs = read_runs([tmp_path / "evaluated"]).runs
    assert runs[["classes", "trained_classes", "acc"]].to_numpy().tolist() == [
        ["base", "base", 0.9],
        ["new", "base", 0.5],
    ]


def test_an_evaluation_whose_run_is_gone_says_so(tmp_path):
    write_run(tmp_path / "run")
    write_evaluation(tmp_path / "evaluated", tmp_path / "run", {"blur": 0.5})
    shutil.rmtree(tmp_path / "run")
    assert set(read_runs([tmp_path]).runs["config.yaml"]) == {"not there"}


def test_options_of_results_stand_in_for_those_of_the_config(tmp_path):
    config = {"method": {"ratio": 0.2, "ctx_init": "of the config"}}
    options = {"ratio": 0.6, "n_ctx": 16, "ctx_init": None, "grid": [1, 2], "optimizer": {"lr": 0.1}}
    keys = keys_of_run(tmp_path, config=config, options=options)
    assert (keys["method.ratio"], keys["method.grid"], keys["optimizer.lr"]) == (0.6, "[1, 2]", 0.1)
    assert "method.ctx_init" not in keys and "method.n_ctx" not in keys
    write_run(tmp_path / "wrong", options=["ratio"])
    with pytest.raises(CoopError, match=r"wrong/results\.json: \"options\" is \['ratio'\]; expected dict"):
        read_runs([tmp_path / "wrong"])


def test_only_the_groups_that_matter_are_read_of_a_config(tmp_path):
    """A run's config.yaml has many more; lists stand at the margin, as OmegaConf writes them."""
    write_run(tmp_path / "run")
    config = tmp_path / "run/config.yaml"
    config.write_text("targets:\n- a\n- b: {\ntrainer: {devices: [1\n" + config.read_text())
    assert "config.yaml" not in keys_of_rows(read_runs([tmp_path]).runs)[0]


def test_names_that_are_not_utf_8(tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/r\xffns"))
    try:
        write_run(folder / "run")
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    records = read_runs([folder])
    assert records.runs["path"].tolist() == [f"{tmp_path}/r\\xffns/run/results.json"]


def test_versions(tmp_path):
    write_run(tmp_path / "a", version="0.1.0")
    write_run(tmp_path / "b", version="0.2.0", seed=2)
    assert set(read_runs([tmp_path]).runs["version"]) == {"0.1.0", "0.2.0"}
    assert json.loads((tmp_path / "a/results.json").read_text())["version"] == "0.1.0"


def test_a_manifest_that_lies_elsewhere_is_the_same_manifest(tmp_path):
    for name, seed in (("a", 1), ("b", 2)):
        dataset = {"manifest": f"/{name}/list.json", "manifest_sha256": "0" * 64}
        write_run(tmp_path / name, seed=seed, config={"dataset": dataset})
    study = make_study(read_runs([tmp_path]), read_published()[:0])
    assert (study.settings["method"] == "coop").sum() == 1
