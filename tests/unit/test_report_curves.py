"""Joining settings into curves: epochs, averages, what is missing, the tables made of them."""

import itertools
import math
import re

import pytest
from synthetic_runs import write_run

from coop.report.published import read_published
from coop.report.records import read_runs
from coop.report.study import make_study
from coop.report.tables import (
    backbone_tables,
    few_shot_tables,
    missing_table,
    panels,
    places,
    settings_tables,
)

NONE = read_published()[:0]


def study_of(folder):
    return make_study(read_runs([folder]), NONE)


def write_grid(folder, data=("caltech101", "dtd"), shots=(1, 16), seeds=(1, 2), acc=lambda d, s, seed: 0.7, **changed):
    name = "_".join(str(value) for value in changed.values() if isinstance(value, str | int))
    for dataset, number, seed in itertools.product(data, shots, seeds):
        values = {"dataset": dataset, "shots": number, "seed": seed, "acc": acc(dataset, number, seed)}
        write_run(folder / f"{name}{dataset}_{number}_{seed}", **values | changed)


def learned(study):
    """(label, numbers of shots) of each trained curve."""
    curves = study.curves.of(zero_shot=False)
    shots = curves.points.groupby("curve")["shots"].unique()
    return [(label, sorted(shots[curve])) for curve, label in curves.table["label"].items()]


def average(folder, data, shots):
    """(n, mean, sd) of the one trained curve."""
    averages = study_of(folder).curves.of(zero_shot=False).average(data)
    return [tuple(row) for (_, at), row in averages.iterrows() if at == shots]


def rows(table):
    return table.frame.to_numpy().tolist()


def test_epochs_follow_the_rule_that_the_config_states(tmp_path):
    """The published rule gives 50 epochs at one shot too: what the config says tells the two apart."""
    write_grid(tmp_path, data=["caltech101"], shots=(1, 4, 16))
    write_grid(tmp_path, data=["caltech101"], shots=(1, 4, 16), epochs=50, config={"epochs": 50})
    assert learned(study_of(tmp_path)) == [("coop 50 to 200 epochs", [1, 4, 16]), ("coop 50 epochs", [1, 4, 16])]


def test_a_study_of_50_epochs_is_one_curve(tmp_path):
    write_grid(tmp_path, data=["caltech101"], shots=(1, 4, 16), epochs=50, config={"epochs": 50})
    study = study_of(tmp_path)
    assert learned(study) == [("coop", [1, 4, 16])]
    assert not study.warnings


WRITTEN = {"method": {"alpha": "${oc.select:method.published.${dataset.name}.alpha,1.0}"}}
PENALTY = {"method": {"penalty": "${coop.over:1,${shots}}"}}


def test_what_a_config_derives_from_the_data_set_stays_on_one_curve(tmp_path):
    def write(name, data, shots, alpha, **changed):
        config = {"method": {"alpha": alpha}}
        write_run(tmp_path / name, dataset=data, method="tip_adapter", shots=shots, config=config, **changed)

    for data, alpha in (("caltech101", 3.0), ("dtd", 2.0)):
        for shots in (1, 16):
            write(f"{data}{shots}", data, shots, alpha, written=WRITTEN)
    assert learned(study_of(tmp_path)) == [("tip_adapter", [1, 16])]
    write("by_hand", "dtd", 16, 9.0)
    assert learned(study_of(tmp_path)) == [("tip_adapter alpha=2.0 to 3.0", [1, 16]), ("tip_adapter alpha=9.0", [16])]
    write("other_version", "dtd", 16, 8.0, written=WRITTEN)  # the same words came out at another value
    labels = sorted(label for label, _ in learned(study_of(tmp_path)))
    assert labels == [f"tip_adapter alpha={alpha}" for alpha in ("2.0", "3.0", "8.0", "9.0")]


def test_what_a_config_derives_from_the_shots_stays_on_one_curve(tmp_path):
    """ProLIP's penalty, against one that was set by hand: where both are the same, it is one setting."""
    for shots in (1, 4, 16):
        for seed in (1, 2):
            config = {"method": {"penalty": 1 / shots}}
            changed = {"method": "prolip", "shots": shots, "seed": seed, "config": config, "written": PENALTY}
            write_run(tmp_path / f"{shots}_{seed}", acc=0.7 + 0.01 * seed, **changed)
    assert learned(study_of(tmp_path)) == [("prolip", [1, 4, 16])]
    for seed, shots in ((1, 4), (3, 4), (1, 16)):
        config = {"method": {"penalty": 0.25}}
        write_run(tmp_path / f"hand{shots}_{seed}", 0.71, config, method="prolip", shots=shots, seed=seed)
    study = study_of(tmp_path)
    assert learned(study) == [("prolip penalty=0.0625 to 1.0", [1, 4, 16]), ("prolip penalty=0.25", [4, 16])]
    at = study.settings[study.settings["method"] == "prolip"].set_index(["shots", "method.penalty"])
    assert at["seeds"].to_dict() == {(1, 1.0): "1 2", (4, 0.25): "1 2 3", (16, 0.0625): "1 2", (16, 0.25): "1"}


def test_values_by_hand_that_are_all_on_another_curve_are_no_curve_of_their_own(tmp_path):
    for shots in (1, 4):
        config = {"method": {"penalty": 1 / shots}}
        write_run(tmp_path / str(shots), config=config, written=PENALTY, method="prolip", shots=shots)
    write_run(tmp_path / "hand", config={"method": {"penalty": 0.25}}, method="prolip", shots=4, seed=2)
    assert learned(study_of(tmp_path)) == [("prolip", [1, 4])]


@pytest.mark.parametrize("content", [b"\xff", b"method: [", b"- a list", b"method: 3 # ${shots}", b""])
def test_without_what_was_written_values_are_compared(tmp_path, content):
    for shots in (1, 4):
        config = {"method": {"penalty": 1 / shots}}
        write_run(tmp_path / str(shots), config=config, written=PENALTY, method="prolip", shots=shots)
        (tmp_path / str(shots) / ".hydra/config.yaml").write_bytes(content)
    assert learned(study_of(tmp_path)) == [("prolip penalty=1.0", [1]), ("prolip penalty=0.25", [4])]


def test_initial_words_make_another_curve(tmp_path):
    write_run(tmp_path / "a", shots=1)
    write_run(tmp_path / "b", shots=16, config={"method": {"ctx_init": "a photo of a"}})
    assert learned(study_of(tmp_path)) == [("coop random init", [1]), ('coop init "a photo of a"', [16])]


def test_average_is_over_data_sets_first_and_seeds_then(tmp_path):
    table = {("caltech101", 1): 0.8, ("caltech101", 2): 0.9, ("dtd", 1): 0.4, ("dtd", 2): 0.6}
    write_grid(tmp_path, shots=[16], acc=lambda data, _, seed: table[data, seed])
    # Seed 1: 0.6; seed 2: 0.75.
    assert average(tmp_path, ["caltech101", "dtd"], 16) == [pytest.approx((2, 0.675, 0.15 / 2**0.5))]


def test_average_takes_only_seeds_that_all_have(tmp_path):
    write_grid(tmp_path, data=["caltech101"], shots=[16], seeds=(1, 2, 3), acc=lambda *_: 0.8)
    write_grid(tmp_path, data=["dtd"], shots=[16], seeds=[2], acc=lambda *_: 0.5)
    assert average(tmp_path, ["caltech101", "dtd"], 16) == [pytest.approx((1, 0.65, math.nan), nan_ok=True)]
    assert average(tmp_path, ["caltech101", "eurosat"], 16) == []


def test_average_of_nothing_in_common(tmp_path):
    write_run(tmp_path / "a", seed=1)
    write_run(tmp_path / "b", seed=2, dataset="dtd")
    assert average(tmp_path, ["caltech101", "dtd"], 16) == []


def test_a_data_set_that_was_only_begun_does_not_take_the_average_away(tmp_path):
    write_grid(tmp_path)
    write_run(tmp_path / "begun", dataset="eurosat", shots=1)
    study = study_of(tmp_path)
    ((_, curves),) = panels(study)
    assert places(curves)[-1] == ("average of 2 data sets", ["caltech101", "dtd"])
    assert "Not in the average of 2 data sets, because incomplete: eurosat." in few_shot_tables(study)[0].note


def test_few_shot_table(tmp_path):
    write_grid(tmp_path, acc=lambda data, shots, seed: 0.5 + 0.01 * shots + 0.02 * seed + 0.1 * (data == "dtd"))
    (table,) = few_shot_tables(study_of(tmp_path))
    assert table.title == "RN50-quickgelu (openai): accuracy by training images per class"
    assert list(table.frame.columns) == ["data set", "method", "0", "1", "16"]
    # caltech101, 1 shot: 0.53 and 0.55; the sample deviation of two values is their distance over sqrt(2).
    assert table.rules == [False, False, True, False, True, False]
    assert rows(table) == [
        ["caltech101", "zero_shot", "60.00 (1)", "", ""],
        ["caltech101", "coop", "", "54.00 ± 1.41 (2)", "69.00 ± 1.41 (2)"],
        ["dtd", "zero_shot", "60.00 (1)", "", ""],
        ["dtd", "coop", "", "64.00 ± 1.41 (2)", "79.00 ± 1.41 (2)"],
        ["average of 2 data sets", "zero_shot", "60.00 (1)", "", ""],
        ["average of 2 data sets", "coop", "", "59.00 ± 1.41 (2)", "74.00 ± 1.41 (2)"],
    ]


def test_missing_settings_are_named(tmp_path):
    write_grid(tmp_path, seeds=(1, 2, 3))
    (tmp_path / "dtd_16_2/results.json").unlink()
    for seed in (1, 2, 3):
        (tmp_path / f"caltech101_1_{seed}/results.json").unlink()
    study = study_of(tmp_path)
    assert rows(missing_table(study)) == [
        ["RN50-quickgelu (openai)", "coop", "caltech101", "1", "1, 2, 3"],
        ["RN50-quickgelu (openai)", "coop", "dtd", "16", "2"],
    ]
    assert ["caltech101", "coop", "", "–", "70.00 ± 0.00 (3)"] in rows(few_shot_tables(study)[0])  # noqa: RUF001
    assert len(study.records.unfinished) == 4


def test_nothing_is_missing_from_a_complete_study(tmp_path):
    write_grid(tmp_path)
    write_run(tmp_path / "extra", seed=9)  # one more seed somewhere is not asked for everywhere
    assert missing_table(study_of(tmp_path)) is None


def test_backbones_side_by_side(tmp_path):
    for backbone, length in itertools.product(("RN50-quickgelu", "ViT-B-16-quickgelu"), (4, 16)):
        if (backbone, length) != ("ViT-B-16-quickgelu", 4):
            acc = 0.6 + 0.01 * length + 0.1 * backbone.startswith("ViT")
            write_run(tmp_path / f"{backbone}{length}", backbone=backbone, n_ctx=length, acc=acc)
    write_run(tmp_path / "more", shots=32)  # the largest number that both have counts
    (table,) = backbone_tables(study_of(tmp_path))
    assert table.title == "16 shots: settings by backbone"
    assert list(table.frame.columns) == ["data set", "method", "RN50-quickgelu (openai)", "ViT-B-16-quickgelu (openai)"]
    assert rows(table) == [
        ["caltech101", "coop M=4", "64.00 (1)", "–"],  # noqa: RUF001
        ["caltech101", "coop M=16", "76.00 (1)", "86.00 (1)"],
    ]


def test_one_backbone_has_no_table_of_backbones(tmp_path):
    write_grid(tmp_path)
    assert backbone_tables(study_of(tmp_path)) == []


def test_parameters_that_grow_with_the_shots_stay_on_one_curve(tmp_path):
    """Tip-Adapter-F trains a cache of all shots."""
    for shots in (1, 4, 16):
        write_run(tmp_path / str(shots), method="tip_adapter_f", shots=shots, trainable_params=25600 * shots)
    assert learned(study_of(tmp_path)) == [("tip_adapter_f", [1, 4, 16])]


def test_labels_say_what_differs_between_methods(tmp_path):
    """M, initial words, epochs and learning rate, wherever two of the compared settings differ in them."""
    write_run(tmp_path / "a")
    config = {"method": {"ctx_init": "a photo of a"}, "optimizer": {"lr": 0.01}}
    write_run(tmp_path / "b", method="kgcoop", n_ctx=4, epochs=100, batch_size=128, config=config)
    write_run(tmp_path / "c", method="linear_probe", epochs=0)
    study = study_of(tmp_path)
    assert [label for label, _ in learned(study)] == [
        "coop M=16, random init, 200 epochs, lr=0.002",
        'kgcoop M=4, init "a photo of a", 100 epochs, lr=0.01',
        "linear_probe",
    ]
    (table,) = settings_tables(study)
    assert table.frame[["batch_size", "optimizer.lr"]].to_numpy().tolist() == [
        ["32", "0.002"],
        ["128", "0.01"],
        ["32", "–"],  # noqa: RUF001
    ]


def test_what_is_the_same_in_all_is_in_no_label(tmp_path):
    for method in ("coop", "kgcoop"):
        write_run(tmp_path / method, method=method, n_ctx=4)
    assert [label for label, _ in learned(study_of(tmp_path))] == ["coop", "kgcoop"]
    assert settings_tables(study_of(tmp_path)) == []


def test_other_options_of_a_method_are_another_curve(tmp_path):
    """Also on another data set: only what `ALONG` names goes with the data."""
    for data, ratio in (("caltech101", 0.2), ("dtd", 0.4)):
        write_run(tmp_path / data, dataset=data, method="clip_adapter", config={"method": {"ratio": ratio}})
    assert [label for label, _ in learned(study_of(tmp_path))] == ["clip_adapter ratio=0.2", "clip_adapter ratio=0.4"]


def test_epochs_that_are_left_to_a_method_are_one_curve_whatever_its_rule(tmp_path):
    for shots, epochs in ((1, 5), (16, 30)):
        write_run(tmp_path / str(shots), method="maple", shots=shots, epochs=epochs)
        config = tmp_path / str(shots) / "config.yaml"
        config.write_text(re.sub("^epochs: .*", "epochs: null", config.read_text(), flags=re.MULTILINE))
    assert learned(study_of(tmp_path)) == [("maple", [1, 16])]
