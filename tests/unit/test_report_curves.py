"""Joining cells into curves: epochs, averages, what is missing, the tables made of them."""

import itertools

import pytest
from synthetic_runs import write_evaluation, write_run

from coop.reporting.contents import context_tables, few_shot_tables, missing_table, panels, transfer_tables
from coop.reporting.curves import average, paper_epochs
from coop.reporting.runs import read_runs
from coop.reporting.study import make_study
from coop.schedule import epochs_by_shots as epochs_of_training


def study_of(folder):
    return make_study(read_runs([folder]), [])


def write_grid(folder, data=("caltech101", "dtd"), shots=(1, 16), seeds=(1, 2), acc=lambda d, s, seed: 0.7, **changed):
    name = "_".join(map(str, changed.values()))
    for dataset, number, seed in itertools.product(data, shots, seeds):
        values = {"dataset": dataset, "shots": number, "seed": seed, "acc": acc(dataset, number, seed)}
        write_run(folder / f"{name}{dataset}_{number}_{seed}", **values | changed)


def learned(study):
    return [curve for curve in study.curves if curve.method != "zero_shot"]


@pytest.mark.parametrize("shots", [-1, 1, 2, 3, 4, 5, 8, 16])
def test_the_rule_for_epochs_is_that_of_training(shots):
    assert paper_epochs("caltech101", shots) == epochs_of_training(shots)
    assert paper_epochs("imagenet", shots) == 50


def test_one_shot_belongs_to_both_rules(tmp_path):
    write_grid(tmp_path, data=["caltech101"], shots=(1, 4, 16))
    write_grid(tmp_path, data=["caltech101"], shots=(4, 16), epochs=50)
    study = study_of(tmp_path)
    assert [(curve.label, curve.shots) for curve in learned(study)] == [
        ("coop the paper's epochs", [1, 4, 16]),
        ("coop 50 epochs", [1, 4, 16]),
    ]
    first, second = learned(study)
    assert first.cells["caltech101", 1] is second.cells["caltech101", 1]
    assert "coop on RN50-quickgelu (openai): epochs are the paper's and 50; " in study.warnings[0]


def test_a_study_of_50_epochs_is_one_curve(tmp_path):
    write_grid(tmp_path, data=["caltech101"], shots=(1, 4, 16), epochs=50)
    study = study_of(tmp_path)
    assert [curve.shots for curve in learned(study)] == [[1, 4, 16]]
    assert not study.warnings


def test_hyper_parameters_may_go_with_the_data_set(tmp_path):
    for data, alpha in (("caltech101", 3.0), ("dtd", 2.0)):
        for shots in (1, 16):
            config = {"method": {"alpha": alpha}}
            write_run(tmp_path / f"{data}{shots}", dataset=data, method="tip_adapter", shots=shots, config=config)
    study = study_of(tmp_path)
    assert len(learned(study)) == 1
    write_run(tmp_path / "other", dataset="dtd", method="tip_adapter", config={"method": {"alpha": 9.0}})
    labels = {curve.label for curve in learned(study_of(tmp_path))}
    assert labels == {"tip_adapter alpha=2.0", "tip_adapter alpha=3.0", "tip_adapter alpha=9.0"}


def test_initial_words_make_another_curve(tmp_path):
    write_run(tmp_path / "a", shots=1)
    write_run(tmp_path / "b", shots=16, config={"method": {"ctx_init": "a photo of a"}})
    assert len(learned(study_of(tmp_path))) == 2


def test_average_is_over_data_sets_first_and_seeds_then(tmp_path):
    table = {("caltech101", 1): 0.8, ("caltech101", 2): 0.9, ("dtd", 1): 0.4, ("dtd", 2): 0.6}
    write_grid(tmp_path, shots=[16], acc=lambda data, _, seed: table[data, seed])
    (curve,) = learned(study_of(tmp_path))
    result = average(curve, ["caltech101", "dtd"], 16)
    # Seed 1: 0.6; seed 2: 0.75.
    assert result.n == 2
    assert result.mean == pytest.approx(0.675)
    assert result.sd == pytest.approx(0.15 / 2**0.5)


def test_average_takes_only_seeds_that_all_have(tmp_path):
    write_grid(tmp_path, data=["caltech101"], shots=[16], seeds=(1, 2, 3), acc=lambda *_: 0.8)
    write_grid(tmp_path, data=["dtd"], shots=[16], seeds=[2], acc=lambda *_: 0.5)
    (curve,) = learned(study_of(tmp_path))
    result = average(curve, ["caltech101", "dtd"], 16)
    assert (result.n, result.mean, result.sd) == (1, pytest.approx(0.65), None)
    assert average(curve, ["caltech101", "eurosat"], 16) is None


def test_average_of_nothing_in_common(tmp_path):
    write_run(tmp_path / "a", seed=1)
    write_run(tmp_path / "b", seed=2, dataset="dtd")
    (curve,) = learned(study_of(tmp_path))
    assert average(curve, ["caltech101", "dtd"], 16) is None


def test_a_data_set_that_was_only_begun_does_not_take_the_average_away(tmp_path):
    write_grid(tmp_path)
    write_run(tmp_path / "begun", dataset="eurosat", shots=1)
    study = study_of(tmp_path)
    (panel,) = panels(study)
    assert panel.places[-1] == ("average of 2 data sets", ["caltech101", "dtd"])
    assert "Not in the average of 2 data sets, because incomplete: eurosat." in few_shot_tables(study)[0].note


def test_few_shot_table(tmp_path):
    write_grid(tmp_path, acc=lambda data, shots, seed: 0.5 + 0.01 * shots + 0.02 * seed + 0.1 * (data == "dtd"))
    (table,) = few_shot_tables(study_of(tmp_path))
    assert table.title == "RN50-quickgelu (openai): accuracy by training images per class"
    assert table.header == ["data set", "method", "0", "1", "16"]
    # caltech101, 1 shot: 0.53 and 0.55; the sample deviation of two values is their distance over sqrt(2).
    assert table.rows == [
        ["caltech101", "zero_shot", "60.00 (1)", "", ""],
        ["caltech101", "coop", "", "54.00 ± 1.41 (2)", "69.00 ± 1.41 (2)"],
        None,
        ["dtd", "zero_shot", "60.00 (1)", "", ""],
        ["dtd", "coop", "", "64.00 ± 1.41 (2)", "79.00 ± 1.41 (2)"],
        None,
        ["average of 2 data sets", "zero_shot", "60.00 (1)", "", ""],
        ["average of 2 data sets", "coop", "", "59.00 ± 1.41 (2)", "74.00 ± 1.41 (2)"],
    ]


def test_missing_cells_are_named(tmp_path):
    write_grid(tmp_path, seeds=(1, 2, 3))
    (tmp_path / "dtd_16_2/results.json").unlink()
    for seed in (1, 2, 3):
        (tmp_path / f"caltech101_1_{seed}/results.json").unlink()
    study = study_of(tmp_path)
    assert missing_table(study).rows == [
        ["RN50-quickgelu (openai)", "coop", "caltech101", "1", "1, 2, 3"],
        ["RN50-quickgelu (openai)", "coop", "dtd", "16", "2"],
    ]
    assert ["caltech101", "coop", "", "–", "70.00 ± 0.00 (3)"] in few_shot_tables(study)[0].rows  # noqa: RUF001
    assert len(study.found.unfinished) == 4


def test_nothing_is_missing_from_a_complete_study(tmp_path):
    write_grid(tmp_path)
    write_run(tmp_path / "extra", seed=9)  # one more seed somewhere is not asked for everywhere
    assert missing_table(study_of(tmp_path)) is None


def test_context_table(tmp_path):
    for backbone, length in itertools.product(("RN50-quickgelu", "ViT-B-16-quickgelu"), (4, 16)):
        if (backbone, length) != ("ViT-B-16-quickgelu", 4):
            acc = 0.6 + 0.01 * length + 0.1 * backbone.startswith("ViT")
            write_run(tmp_path / f"{backbone}{length}", backbone=backbone, n_ctx=length, acc=acc)
    (table,) = context_tables(study_of(tmp_path))
    assert table.title == "coop, 16 shots: context length M by backbone"
    assert table.header == ["data set", "M", "RN50-quickgelu (openai)", "ViT-B-16-quickgelu (openai)"]
    assert table.rows == [
        ["caltech101", "4", "64.00 (1)", "–"],  # noqa: RUF001
        ["caltech101", "16", "76.00 (1)", "86.00 (1)"],
    ]


def test_no_context_table_of_one_length_and_one_backbone(tmp_path):
    write_grid(tmp_path)
    write_grid(tmp_path, augmentation="none")
    assert context_tables(study_of(tmp_path)) == []


def test_transfer_table(tmp_path):
    for seed, source, shifted in ((1, 0.8, 0.5), (2, 0.9, 0.7)):
        write_run(tmp_path / f"run{seed}", seed=seed, acc=source)
        write_evaluation(tmp_path / f"to{seed}", tmp_path / f"run{seed}", {"sketch": shifted, "blur": 0.4})
    (table,) = transfer_tables(study_of(tmp_path))
    assert table.title == "Trained on caltech101, tested on others"
    assert table.header[3:] == ["caltech101 (source)", "sketch", "blur", "average of 2 targets"]
    zero_shot, coop = table.rows
    assert zero_shot[1:4] == ["zero_shot", "", "60.00 (1)"]
    assert zero_shot[4] == "50.00 ± 14.14 (2)"  # a fiction: it is 0.1 below ours, and so differs by seed
    assert coop[1:] == [
        *("coop", "16", "85.00 ± 7.07 (2)", "60.00 ± 14.14 (2)", "40.00 ± 0.00 (2)", "50.00 ± 7.07 (2)"),
    ]


def test_parameters_that_grow_with_the_shots_stay_on_one_curve(tmp_path):
    """Tip-Adapter-F trains a cache of all shots."""
    for shots in (1, 4, 16):
        write_run(tmp_path / str(shots), method="tip_adapter_f", shots=shots, trainable_params=25600 * shots)
    (curve,) = [c for c in make_study(read_runs([tmp_path]), []).curves if c.method == "tip_adapter_f"]
    assert (curve.shots, curve.label) == ([1, 4, 16], "tip_adapter_f")
