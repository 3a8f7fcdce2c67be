"""Averaging over seeds, and what is never averaged together."""

import math

import pytest
from synthetic_runs import write_evaluation, write_run

from coop.report.groups import make_settings
from coop.report.published import read_published
from coop.report.records import read_runs
from coop.report.study import make_study

NONE = read_published()[:0]


def settings_of(folder):
    """Settings with their accuracies by seed, and warnings."""
    settings, scores, warnings = make_settings(read_runs([folder]).runs)
    by_seed = [dict(zip(own["seed"], own["acc"], strict=True)) for _, own in scores.groupby("setting")]
    return list(settings.assign(by_seed=by_seed).itertuples()), warnings


def study_of(folder):
    return make_study(read_runs([folder]), NONE)


def labels_of(folder):
    return study_of(folder).curves.table["label"].tolist()


def test_mean_and_sample_deviation(tmp_path):
    for seed, acc in ((1, 0.70), (2, 0.72), (3, 0.77)):
        write_run(tmp_path / str(seed), acc=acc, seed=seed, **{"zero_shot/acc": 0.5 + 0.01 * seed})
    (setting,), warnings = settings_of(tmp_path)
    assert not warnings
    assert setting.by_seed == {1: 0.70, 2: 0.72, 3: 0.77}
    assert setting.n == 3
    assert setting.mean == pytest.approx(0.73)
    # Deviations -0.03, -0.01, 0.04: squares 0.0009, 0.0001, 0.0016; divided by n - 1 = 2.
    assert setting.sd == pytest.approx(0.0013**0.5)
    assert setting.zero_shot == pytest.approx(0.52)
    # Gains 0.19, 0.20, 0.24 about 0.21: squares 0.0004, 0.0001, 0.0009.
    assert setting.gain == pytest.approx(0.21)
    assert setting.gain_sd == pytest.approx(0.0007**0.5)


def test_one_seed_has_no_deviation(tmp_path):
    write_run(tmp_path / "run", acc=0.7)
    ((setting,), _) = settings_of(tmp_path)
    assert (setting.n, setting.mean) == (1, 0.7) and math.isnan(setting.sd)


@pytest.mark.parametrize(
    "changed",
    [
        {"classes": "base"},
        {"split": "generated"},
        {"num_classes": 50},
        {"n_test": 100},
        {"augmentation": "none"},
        {"batch_size": 64},
        {"precision": "bf16-mixed"},
        {"tf32": True},
        {"epochs": 50},
        {"config": {"optimizer": {"lr": 0.01}}},
        {"config": {"optimizer": {"name": "adamw"}}},
        {"config": {"backbone": {"precision": "fp16"}}},
        {"config": {"dataset": {"path": "/other"}}},
        {"config": {"dataset": {"template": "{}"}}},
        {"config": {"method": {"ctx_init": "a photo of a"}}},
        {"config": False},
        {"n_ctx": 4},
        {"class_specific": True},
        {"class_token_position": "middle"},
        {"pretrained": "laion400m"},
        {"shots": 8},
        {"dataset": "dtd"},
    ],
)
def test_what_differs_is_never_averaged(tmp_path, changed):
    write_run(tmp_path / "a", acc=0.7, seed=1)
    write_run(tmp_path / "b", acc=0.8, seed=2, **changed)
    settings, _ = settings_of(tmp_path)
    assert sorted(setting.mean for setting in settings) == [0.7, 0.8]


@pytest.mark.parametrize("key", ["split", "num_classes", "n_test"])
def test_other_test_images_are_said(tmp_path, key):
    for seed in (1, 2, 3):
        write_run(tmp_path / str(seed), seed=seed)
    value = {"split": "generated"}.get(key, 7)
    write_run(tmp_path / "other", seed=1, **{key: value})
    usual = {"split": "published", "num_classes": 100, "n_test": 2465}[key]
    assert study_of(tmp_path).warnings == [
        f"caltech101: {key} is {usual} (3 runs), {value} (1 run); never averaged together, in separate rows"
    ]


def test_rows_that_differ_are_told_apart(tmp_path):
    write_run(tmp_path / "a", seed=1)
    write_run(tmp_path / "b", seed=1, augmentation="none")
    assert labels_of(tmp_path) == [
        "zero_shot",
        "coop augmentation=online",
        "coop augmentation=none",
    ]


def test_an_old_run_that_did_not_record_a_key(tmp_path):
    write_run(tmp_path / "a", seed=1)
    write_run(tmp_path / "b", seed=2, tf32=None)
    settings, _ = settings_of(tmp_path)
    assert len(settings) == 2
    assert labels_of(tmp_path)[2:] == ["coop tf32=False", "coop tf32=–"]  # noqa: RUF001


def test_the_same_seed_twice(tmp_path):
    write_run(tmp_path / "a", acc=0.7)
    write_run(tmp_path / "b", acc=0.7)
    (setting,), warnings = settings_of(tmp_path)
    assert (setting.n, warnings) == (1, [])
    write_run(tmp_path / "c", acc=0.75)
    (setting,), (warning,) = settings_of(tmp_path)
    assert setting.by_seed == {1: 0.7}
    assert f"{tmp_path / 'a'} (70.00) counts, left out: {tmp_path / 'c'} (75.00)" in warning


def test_zero_shot_is_one_figure_however_many_runs_there_are(tmp_path):
    for seed in (1, 2, 3):
        for shots in (1, 16):
            write_run(tmp_path / f"{shots}_{seed}", seed=seed, shots=shots)
    write_run(tmp_path / "zero_shot", method="zero_shot", acc=0.6, epochs=0)
    study = study_of(tmp_path)
    (setting,) = [setting for setting in study.settings.itertuples() if setting.method == "zero_shot"]
    assert (setting.n, setting.mean, setting.shots) == (1, 0.6, 0) and math.isnan(setting.sd)
    assert not study.warnings


def test_zero_shot_that_differs_between_runs_is_said(tmp_path):
    write_run(tmp_path / "a", shots=1)
    write_run(tmp_path / "b", shots=16, **{"zero_shot/acc": 0.61})
    (warning,) = study_of(tmp_path).warnings
    assert "caltech101, RN50-quickgelu, zero_shot, seed 1: computed more than once with different results" in warning
    assert "(60.00) counts" in warning and "(61.00)" in warning


def test_splits_drawn_by_seed_are_averaged(tmp_path):
    for seed in (1, 2, 3):
        config = {"dataset": {"path": "/mine", "seed": seed}}
        zero_shot = {"zero_shot/acc": 0.5 + 0.01 * seed}
        write_run(tmp_path / str(seed), seed=seed, dataset="folder", split="generated", config=config, **zero_shot)
    study = study_of(tmp_path)
    assert study.settings[["method", "n"]].to_numpy().tolist() == [["coop", 3], ["zero_shot", 3]]
    assert study.settings["sd"].iloc[1] == pytest.approx(0.01)


def test_splits_of_one_seed_are_averaged_too(tmp_path):
    for seed in (1, 2, 3):
        for shots in (1, 16) if seed == 1 else (16,):
            config = {"dataset": {"seed": 1}}
            write_run(tmp_path / f"{seed}_{shots}", seed=seed, shots=shots, dataset="sun397", config=config)
    study = study_of(tmp_path)
    assert {(setting.method, setting.shots): setting.n for setting in study.settings.itertuples()} == {
        ("coop", 16): 3,
        ("coop", 1): 1,
        ("zero_shot", 0): 1,
    }
    assert len(study.curves.table) == 2


def test_base_to_new_is_not_a_mixture(tmp_path):
    write_run(tmp_path / "run", classes="base", num_classes=50, n_test=1500)
    new = {"classes": "new", "num_classes": 50, "n_test": 965}
    write_evaluation(tmp_path / "evaluated", tmp_path / "run", {"caltech101": 0.5}, caltech101=new)
    study = study_of(tmp_path)
    assert not study.warnings
    learned = study.curves.of(kind="base to new", method="coop")
    assert len(learned.table) == 1
    assert learned.points[["data", "shots", "acc"]].to_numpy().tolist() == [
        ["caltech101 (base)", 16, 0.8],
        ["caltech101 (new)", 16, 0.5],
    ]


def test_a_backbone_without_named_weights(tmp_path):
    write_run(tmp_path / "a", backbone="tiny", pretrained=None)
    assert study_of(tmp_path).curves.table["backbone"].tolist() == ["tiny", "tiny"]


def test_several_versions_are_said(tmp_path):
    write_run(tmp_path / "a", version="0.1.0")
    write_run(tmp_path / "b", version="0.2.0", seed=2)
    assert study_of(tmp_path).warnings == ["the runs were written by several versions of coop: 0.1.0, 0.2.0"]


def test_labels_of_what_some_do_not_have(tmp_path):
    write_run(tmp_path / "a", method="zero_shot", config={"method": {"template": "{}"}})
    write_run(tmp_path / "b", method="clip_adapter", config={"method": {"ratio": 0.2}})
    write_run(tmp_path / "c", method="clip_adapter")
    assert labels_of(tmp_path) == [
        "zero_shot template={}",
        "zero_shot",
        "clip_adapter ratio=0.2",
        "clip_adapter ratio=–",  # noqa: RUF001
    ]


def test_data_that_differ_are_named_only_where_they_do(tmp_path):
    write_run(tmp_path / "a", num_classes=99)
    write_run(tmp_path / "b")
    write_run(tmp_path / "c", n_ctx=4)
    assert labels_of(tmp_path)[2:] == ["coop M=4", "coop M=16, num_classes=99", "coop M=16, num_classes=100"]
