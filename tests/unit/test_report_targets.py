"""Runs that were tested on other data too, in the report; and runs that do not belong together."""

from functools import partial

import pandas as pd
import pytest
from synthetic_runs import write_run

from coop.cli.command import exit_code
from coop.report.__main__ import main
from coop.report.leaderboard import board_table, boards
from coop.report.published import read_published
from coop.report.records import read_runs
from coop.report.study import make_study
from coop.runs.base_to_new import harmonic_mean

NONE = read_published()[:0]
run = partial(exit_code, main)


def entry(acc: float, **changed) -> dict:
    common = {"classes": "all", "split": "published", "num_classes": 100, "n_test": 10}
    return common | {"test/acc": acc, "test/macro_acc": acc, "zero_shot/acc": 0.5} | changed


def test_targets_of_a_training_stand_beside_its_source(tmp_path):
    for seed, acc in ((1, 0.70), (2, 0.80)):
        targets = {"imagenet_a": entry(acc - 0.5, num_classes=200), "imagenet_r": entry(acc - 0.1, num_classes=200)}
        write_run(tmp_path / str(seed), seed=seed, acc=acc, targets=targets)
    (board,) = boards(make_study(read_runs([tmp_path]), NONE), own=False)
    table = board_table(board, brief=True)
    assert list(table.frame.columns[2:6]) == ["caltech101 (source)", "imagenet_a", "imagenet_r", "average of 2 targets"]
    zero_shot, coop = table.frame.to_numpy().tolist()
    assert zero_shot[:6] == ["1", "zero_shot", "60.00", "50.00", "50.00", "50.00 (1)"]
    # Two seeds, 0.1 apart: 12.71 standard errors of 0.05.
    assert coop[:6] == ["2", "coop", "75.00", "25.00", "65.00", "45.00 ± 63.53 (2)"]


BASE, NEW = {1: 0.8, 2: 0.9}, {1: 0.6, 2: 0.5}  # by seed


def write_base_to_new(folder, dataset, **changed):
    for seed in (1, 2):
        half = {"num_classes": 50, "classes": "base", "n_test": 1549}
        targets = {f"{dataset}:new": entry(NEW[seed], classes="new", num_classes=50)}
        write_run(
            folder / f"{dataset}{seed}", seed=seed, dataset=dataset, acc=BASE[seed], targets=targets, **half, **changed
        )


def test_base_to_new_has_the_harmonic_mean(tmp_path):
    write_base_to_new(tmp_path, "caltech101")
    (board,) = boards(make_study(read_runs([tmp_path]), NONE), own=False)
    assert list(board.scores) == ["base", "new", "H"]
    coop = board.frame.set_index("method").loc["coop"]
    means = [2 * 0.8 * 0.6 / 1.4, 2 * 0.9 * 0.5 / 1.4]
    assert (coop["base"], coop["new"], coop["mean"]) == pytest.approx((0.85, 0.55, sum(means) / 2))
    assert coop["half"] == pytest.approx(12.7062 * abs(means[0] - means[1]) / 2)
    assert board_table(board, brief=True).frame["method"].tolist() == ["coop", "zero_shot"]


def test_base_to_new_over_data_sets_has_both_means(tmp_path):
    """H of the averages (CoCoOp's table) and the average of H over data sets are two figures."""
    write_base_to_new(tmp_path, "caltech101")
    half = {"num_classes": 50, "classes": "base", "n_test": 1549}
    for seed in (1, 2):
        targets = {"dtd:new": entry(0.9, classes="new", num_classes=50)}
        write_run(tmp_path / f"dtd{seed}", seed=seed, dataset="dtd", acc=0.3, targets=targets, **half)
    (board,) = boards(make_study(read_runs([tmp_path]), NONE), own=False)
    assert list(board.scores) == ["base", "new", "average of H", "H of the averages"]
    coop = board.frame.set_index("method").loc["coop"]
    of_averages = [
        2 * b * n / (b + n) for b, n in (((0.8 + 0.3) / 2, (0.6 + 0.9) / 2), ((0.9 + 0.3) / 2, (0.5 + 0.9) / 2))
    ]
    of_each = [2 * b * n / (b + n) for b, n in ((0.8, 0.6), (0.9, 0.5), (0.3, 0.9), (0.3, 0.9))]
    assert coop["H of the averages"] == pytest.approx(sum(of_averages) / 2)
    assert coop["average of H"] == pytest.approx(sum(of_each) / 4)
    assert coop["rank"] == 1 and board.title.endswith("base to new, average of 2 data sets")


def test_h_is_0_where_nothing_is_right():
    assert harmonic_mean(0.0, 0.0) == 0.0
    assert harmonic_mean(pd.Series([0.0, 0.5]), pd.Series([0.0, 1.0])).tolist() == [0.0, pytest.approx(2 / 3)]


def test_published_h_is_that_of_the_published_averages():
    """As they print it, from base and new as they print these; two average H over data sets instead."""
    figures = read_published()
    averages = figures[figures["dataset"] == "average of 11 data sets"]
    averages = averages.assign(classes=[stated["classes"] for stated in averages["stated"]])
    wide = averages.pivot_table("accuracy_percent", ["table", "method"], "classes", aggfunc="first")
    wide = wide.dropna(subset="harmonic_mean").astype(float)
    assert len(wide) == 35
    off = (harmonic_mean(wide["base"], wide["new"]) - wide["harmonic_mean"]).abs()
    assert (off < 0.02).sum() == 33 and off.max() < 0.2


@pytest.fixture
def not_drawn(monkeypatch):
    monkeypatch.setattr("coop.report.page.plots", lambda *_: [])


@pytest.mark.parametrize(("key", "value"), [("split", "generated"), ("num_classes", 99), ("n_test", 2000)])
def test_runs_on_other_data_are_refused_in_one_report(tmp_path, capsys, not_drawn, key, value):
    write_run(tmp_path / "runs/a", seed=1)
    write_run(tmp_path / "runs/b", seed=2, **{key: value})
    assert run([str(tmp_path / "runs")]) == 1
    message = capsys.readouterr().err
    assert f"caltech101: {key} is " in message and "(1 run)" in message and "mixed=true" in message
    assert not (tmp_path / "runs/report").exists()
    assert run([str(tmp_path / "runs"), "mixed=true"]) == 0
    assert f"warning: caltech101: {key} is " in capsys.readouterr().err
    assert run([str(tmp_path / "runs"), "mixed=perhaps"]) == 1


def test_base_and_all_classes_are_apart_and_welcome(tmp_path, not_drawn):
    write_run(tmp_path / "runs/a")
    write_run(tmp_path / "runs/b", classes="base", num_classes=50, n_test=1549)
    assert run([str(tmp_path / "runs")]) == 0


def test_a_zero_shot_run_is_what_stands_beside_the_others(tmp_path):
    write_base_to_new(tmp_path / "coop", "caltech101")
    half = {"num_classes": 50, "classes": "base", "n_test": 1549}
    targets = {"caltech101:new": entry(0.5, classes="new", num_classes=50)}
    write_run(tmp_path / "zero_shot", method="zero_shot", acc=0.6, epochs=0, targets=targets, **half)
    there = {"imagenet_a": entry(0.5, num_classes=200)}
    for method in ("coop", "zero_shot"):
        write_run(tmp_path / f"transfer_{method}", method=method, acc=0.6, dataset="imagenet", targets=there)
    study = make_study(read_runs([tmp_path]), NONE)
    assert not study.warnings
    methods = [board.frame["method"].tolist() for board in boards(study, own=False)]
    assert [sorted(names) for names in methods] == [["coop", "zero_shot"]] * 2


def test_a_setting_has_one_name_whatever_it_was_tested_on(tmp_path):
    """KgCoOp was tested on nothing else, and has other epochs."""
    write_run(tmp_path / "a", targets={"imagenet_a": entry(0.3, num_classes=200)})
    write_run(tmp_path / "b", method="kgcoop", epochs=100, config={"epochs": 100})
    study = make_study(read_runs([tmp_path]), NONE)
    assert study.curves.of(kind="own").table["label"].tolist() == ["zero_shot", "coop 200 epochs", "kgcoop 100 epochs"]
    assert study.curves.of(kind="transfer").table["label"].tolist() == ["zero_shot", "coop 200 epochs"]
