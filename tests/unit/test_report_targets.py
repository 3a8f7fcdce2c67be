"""Runs that were tested on other data too, in the report; and runs that do not belong together."""

import pytest
from synthetic_runs import write_run

from coop.report.__main__ import run
from coop.report.published import expected_file, read_published
from coop.report.records import read_runs
from coop.report.study import make_study
from coop.report.tables import transfer_tables

NONE = read_published(expected_file())[:0]


def entry(acc: float, **changed) -> dict:
    common = {"classes": "all", "split": "published", "num_classes": 100, "n_test": 10}
    return common | {"test/acc": acc, "test/macro_acc": acc, "zero_shot/acc": 0.5} | changed


def test_targets_of_a_training_stand_beside_its_source(tmp_path):
    for seed, acc in ((1, 0.70), (2, 0.80)):
        targets = {"imagenet_a": entry(acc - 0.5, num_classes=200), "imagenet_r": entry(acc - 0.1, num_classes=200)}
        write_run(tmp_path / str(seed), seed=seed, acc=acc, targets=targets)
    (table,) = transfer_tables(make_study(read_runs([tmp_path]), NONE))
    assert list(table.frame.columns[3:]) == ["caltech101 (source)", "imagenet_a", "imagenet_r", "average of 2 targets"]
    zero_shot, coop = table.frame.to_numpy().tolist()
    assert zero_shot[3:] == ["60.00 (1)", "50.00 (1)", "50.00 (1)", "50.00 (1)"]
    assert coop[3:] == ["75.00 ± 7.07 (2)", "25.00 ± 7.07 (2)", "65.00 ± 7.07 (2)", "45.00 ± 7.07 (2)"]


def test_base_to_new_has_the_harmonic_mean_over_seeds(tmp_path):
    for seed, base, new in ((1, 0.8, 0.6), (2, 0.9, 0.5)):
        half = {"num_classes": 50, "classes": "base", "n_test": 1549}
        targets = {"caltech101:new": entry(new, classes="new", num_classes=50)}
        write_run(tmp_path / str(seed), seed=seed, acc=base, targets=targets, **half)
    (table,) = transfer_tables(make_study(read_runs([tmp_path]), NONE))
    assert list(table.frame.columns[3:]) == ["caltech101 (base) (source)", "caltech101 (new)", "harmonic mean"]
    means = [2 * 0.8 * 0.6 / 1.4, 2 * 0.9 * 0.5 / 1.4]
    mean, sd = sum(means) / 2, abs(means[0] - means[1]) / 2**0.5
    assert table.frame.iloc[-1].tolist()[3:] == [
        "85.00 ± 7.07 (2)",
        "55.00 ± 7.07 (2)",
        f"{100 * mean:.2f} ± {100 * sd:.2f} (2)",
    ]


@pytest.mark.parametrize(("key", "value"), [("split", "generated"), ("num_classes", 99), ("n_test", 2000)])
def test_runs_on_other_data_are_refused_in_one_report(tmp_path, capsys, key, value):
    write_run(tmp_path / "runs/a", seed=1)
    write_run(tmp_path / "runs/b", seed=2, **{key: value})
    assert run([str(tmp_path / "runs")]) == 1
    message = capsys.readouterr().err
    assert f"caltech101: {key} is " in message and "(1 run)" in message and "mixed=true" in message
    assert not (tmp_path / "runs/report").exists()
    assert run([str(tmp_path / "runs"), "mixed=true"]) == 0
    assert f"warning: caltech101: {key} is " in capsys.readouterr().err
    assert run([str(tmp_path / "runs"), "mixed=perhaps"]) == 1


def test_base_and_all_classes_are_apart_and_welcome(tmp_path):
    write_run(tmp_path / "runs/a")
    write_run(tmp_path / "runs/b", classes="base", num_classes=50, n_test=1549)
    assert run([str(tmp_path / "runs")]) == 0
