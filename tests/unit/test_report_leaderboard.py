"""The leaderboard: ranks, what is compared with what, what is left open, costs, and published figures."""

import csv
import itertools
import math

import pytest
from scipy import stats
from synthetic_runs import write_run

from coop.report.leaderboard import board_table, boards
from coop.report.page import csv_files
from coop.report.published import read_published
from coop.report.records import read_runs
from coop.report.study import make_study
from coop.report.tables import to_latex, to_markdown

PUBLISHED = read_published()
ACCURACIES = {"coop": 0.70, "maple": 0.75, "taskres": 0.72}


def boards_of(folder, published=PUBLISHED[:0]):
    return boards(make_study(read_runs([folder]), published))


def board_of(folder, published=PUBLISHED[:0]):
    (board,) = boards_of(folder, published)
    return board


def write_methods(folder, data=("caltech101",), seeds=(1, 2, 3), **changed):
    """Three methods; splits move all of them alike, and a little each."""
    for method, dataset, seed in itertools.product(ACCURACIES, data, seeds):
        acc = ACCURACIES[method] + 0.02 * (seed % 3) + 0.001 * ((7 * seed + len(method)) % 5)
        write_run(folder / f"{method}_{dataset}_{seed}", acc=acc, method=method, dataset=dataset, seed=seed, **changed)


def shown(board):
    """Rows of its table, by method."""
    rows = board_table(board).frame.to_dict("records")
    return {row["method"]: row for row in rows}


def test_ranks_are_those_of_scipy(tmp_path):
    write_methods(tmp_path, data=("caltech101", "dtd"))
    frame = board_of(tmp_path).frame
    assert frame["method"].tolist() == ["maple", "taskres", "coop", "zero_shot"]
    assert frame["rank"].tolist() == stats.rankdata(-frame["mean"], "min").tolist() == [1, 2, 3, 4]
    assert frame["mean rank"].tolist() == [1, 2, 3, 4]


def test_methods_that_are_equal_share_a_rank(tmp_path):
    for method in ("maple", "taskres"):
        write_run(tmp_path / method, method=method, acc=0.8)
    assert board_of(tmp_path).frame["rank"].tolist() == [1, 1, 3]


def test_mean_interval_and_differences(tmp_path):
    write_methods(tmp_path)
    board = board_of(tmp_path)
    maple, taskres = (
        board.scores["accuracy"].loc[board.frame["method"] == name].iloc[0] for name in ("maple", "taskres")
    )
    low, high = stats.t.interval(0.95, 2, maple.mean(), stats.sem(maple))
    difference, paired = (taskres - maple).mean(), stats.ttest_rel(taskres, maple).confidence_interval()
    rows = shown(board)
    assert rows["maple"]["accuracy"] == f"{100 * maple.mean():.2f} ± {50 * (high - low):.2f} (3)"
    half = f"{50 * (paired.high - paired.low):.2f}"
    assert rows["taskres"]["to the best"] == f"−{-100 * difference:.2f} ± {half} *"  # noqa: RUF001
    assert rows["maple"]["to the best"] == rows["coop"]["to CoOp"] == "–"  # noqa: RUF001
    assert rows["maple"]["to CoOp"] == "+5.10"  # on every seed: no interval


def test_two_stars_need_ranks_as_well(tmp_path):
    write_methods(tmp_path, seeds=range(1, 11))
    assert shown(board_of(tmp_path))["coop"]["to the best"].endswith(" **")


def test_one_seed_has_neither_interval_nor_test(tmp_path):
    write_methods(tmp_path, seeds=(1,))
    coop = shown(board_of(tmp_path))["coop"]
    assert (coop["rank"], coop["accuracy"], coop["to the best"]) == ("3", "72.10 (1)", "−5.10")  # noqa: RUF001


def test_zero_shot_is_one_figure_and_compared_on_all_seeds(tmp_path):
    write_methods(tmp_path)
    board = board_of(tmp_path)
    assert shown(board)["zero_shot"]["accuracy"] == "60.00 (1)"
    assert board.frame.set_index("method").loc["zero_shot", "best_n"] == 3


def test_a_method_that_lacks_a_data_set_has_no_rank(tmp_path):
    write_methods(tmp_path, data=("caltech101", "dtd"))
    write_run(tmp_path / "tcp", method="tcp", acc=0.99)
    board = board_of(tmp_path)
    tcp = shown(board)["tcp"]
    assert (tcp["rank"], tcp["accuracy"], tcp["to the best"]) == ("–", "–", "–")  # noqa: RUF001
    assert "Not ranked, for all methods are compared on the same data sets: tcp (lacks dtd)." in board_table(board).note
    assert shown(board)["maple"]["rank"] == "1"


def test_other_seeds_are_said(tmp_path):
    write_methods(tmp_path)
    write_run(tmp_path / "maple_more", method="maple", acc=0.7, seed=9)
    board = board_of(tmp_path)
    assert "Not all methods have the same seeds" in board_table(board).note
    assert board.frame.set_index("method").loc[["maple", "coop"], "n"].tolist() == [4, 3]
    assert board.frame.set_index("method").loc["coop", "best_n"] == 3


def test_other_settings_of_a_method_are_other_rows(tmp_path):
    for seed, lr in itertools.product((1, 2), (0.002, 0.01)):
        write_run(tmp_path / f"{seed}{lr}", seed=seed, acc=0.7 + lr, config={"optimizer": {"lr": lr}})
    assert list(shown(board_of(tmp_path))) == ["coop lr=0.01", "coop lr=0.002", "zero_shot"]


def test_one_board_for_each_number_of_shots(tmp_path):
    for shots in (1, 16):
        write_methods(tmp_path / str(shots), shots=shots)
    assert [board.name for board in boards_of(tmp_path)] == ["leaderboard_1_1_shot", "leaderboard_1_16_shots"]


def test_costs_and_what_a_method_used(tmp_path):
    measured = {"encode_seconds": 7.0, "fit_seconds": 125.5, "test_seconds": 2.0, "step_seconds": 0.0125}
    measured |= {"peak_memory_mb": 2048.0, "test/ece": 0.0312, "uses": ["validation images", "unlabeled images"]}
    write_run(tmp_path / "a", **measured)
    write_run(tmp_path / "b", method="taskres", uses=[])
    write_run(tmp_path / "old", method="maple", fit_seconds=None, test_seconds=None)
    rows = shown(board_of(tmp_path))
    heads = ["trained", "encode s", "fit s", "test s", "step ms", "peak MB", "uses", "ECE"]
    assert [rows["coop"][head] for head in heads] == ["8,192", "7", "126", "2", "12.5", "2,048", "V U", "3.12"]
    assert [rows["taskres"][head] for head in heads[4:]] == ["–", "–", "none", "–"]  # noqa: RUF001
    assert [rows["maple"][head] for head in heads[1:]] == ["–"] * 7  # noqa: RUF001
    assert "AUROC" not in rows["coop"]


def test_measurements_that_are_no_numbers_are_not_there(tmp_path):
    write_run(tmp_path / "a", fit_seconds="long", step_seconds=math.inf, uses="images")
    runs = read_runs([tmp_path]).runs
    assert runs[["fit_seconds", "step_seconds"]].isna().all(axis=None) and runs["uses"].tolist() == [None]


VIT = {"backbone": "ViT-B-16-quickgelu"}


def test_published_figures_stand_beside_the_same_setting(tmp_path):
    write_run(tmp_path / "a", method="promptsrc", **VIT)
    write_run(tmp_path / "b", method="kgcoop", **VIT)
    write_run(tmp_path / "c", method="dept", **VIT)
    rows = shown(board_of(tmp_path, PUBLISHED))
    assert rows["promptsrc"]["published"] == "96.10 ◆"  # verified
    assert rows["kgcoop"]["published"] == "95.20 ◇"  # recalled
    assert rows["dept"]["published"] == "–"  # noqa: RUF001


@pytest.mark.parametrize(
    "changed", [{"pretrained": "laion2b"}, {"shots": 8}, {"split": "generated"}, {"classes": "new"}]
)
def test_another_setting_has_no_published_figure(tmp_path, changed):
    write_run(tmp_path / "a", method="promptsrc", **VIT | changed)
    assert shown(board_of(tmp_path, PUBLISHED))["promptsrc"]["published"] == "–"  # noqa: RUF001


ELEVEN = [
    *("imagenet", "caltech101", "oxford_pets", "stanford_cars", "oxford_flowers", "food101", "fgvc_aircraft"),
    *("sun397", "dtd", "eurosat", "ucf101"),
]


def test_published_averages_stand_beside_the_same_average(tmp_path):
    for data in ELEVEN:
        targets = {f"{data}:new": {"classes": "new", "split": "published", "test/acc": 0.7, "zero_shot/acc": 0.6}}
        write_run(tmp_path / data, method="maple", dataset=data, classes="base", targets=targets, **VIT)
    board = boards_of(tmp_path, PUBLISHED)[-1]
    assert shown(board)["maple"]["published"] == "78.55 ◆"  # H of 82.28 and 75.14 (MaPLe, Table 3)
    (tmp_path / "dtd/results.json").unlink()
    assert shown(boards_of(tmp_path, PUBLISHED)[-1])["maple"]["published"] != "78.55 ◆"


def test_published_averages_over_targets(tmp_path):
    """CoOp's target by target are in other tables: here the average alone."""
    shifts = {"imagenetv2": 1000, "imagenet_sketch": 1000, "imagenet_a": 200, "imagenet_r": 200}
    targets = {
        name: {"split": "published", "num_classes": classes, "test/acc": 0.5, "zero_shot/acc": 0.4}
        for name, classes in shifts.items()
    }
    write_run(tmp_path / "a", method="cocoop", dataset="imagenet", num_classes=1000, targets=targets, **VIT)
    averages = PUBLISHED[PUBLISHED["dataset"] == "average of 4 targets"]
    rows = shown(boards_of(tmp_path, averages)[-1])
    assert (rows["cocoop"]["published"], rows["zero_shot"]["published"]) == ("59.91 ◆", "57.18 ◇")


def test_exports(tmp_path):
    write_methods(tmp_path)
    write_run(tmp_path / "promptsrc", method="promptsrc", **VIT)
    study = make_study(read_runs([tmp_path]), PUBLISHED)
    found = boards(study)
    rows = list(csv.DictReader(csv_files(study, found)["leaderboard.csv"].splitlines()))
    assert [row["method"] for row in rows if row["board"] == found[0].name] == ["maple", "taskres", "coop", "zero_shot"]
    assert float(rows[0]["mean"]) == found[0].frame["mean"].iloc[0]
    assert "| 1 " in to_markdown(board_table(found[0]))
    assert "96.10 $\\blacklozenge$" in to_latex(board_table(found[1]))
