"""The published figures: what stands in expected.csv, and when one is held against ours."""

import statistics
from collections import Counter

import pytest
from hydra import compose, initialize_config_dir
from synthetic_runs import write_evaluation, write_run

from coop.config import conf_dir
from coop.data.catalogue import PUBLISHED
from coop.errors import CoopError
from coop.reporting.beside import published_averages, published_tables
from coop.reporting.published import compare, expected_file, read_figures
from coop.reporting.runs import read_runs
from coop.reporting.spreadsheets import published_csv
from coop.reporting.study import make_study

FIGURES = read_figures(expected_file())
HEADER = "table,dataset,method,backbone,shots,n_ctx,setting,accuracy_percent,confidence,source\n"


def study_of(folder, figures=FIGURES):
    return make_study(read_runs([folder]), figures)


def compared(folder, figures=FIGURES):
    return [item for item in study_of(folder, figures).comparisons if item.cell.method != "zero_shot"]


def test_all_figures_are_there():
    assert len(FIGURES) == 256
    assert Counter(figure.confidence for figure in FIGURES) == {"recalled": 203, "verified": 46, "low": 7}


@pytest.mark.parametrize(
    ("shots", "average"), [(0, 58.77), (1, 59.59), (2, 62.32), (4, 66.77), (8, 69.89), (16, 73.42)]
)
def test_averages_over_the_data_sets_are_the_published_ones(shots, average):
    method = "coop" if shots else "zero_shot"
    chosen = [
        figure.accuracy
        for figure in FIGURES
        if figure.table == "few-shot" and (figure.same["method"], figure.same["shots"]) == (method, shots)
    ]
    assert len(chosen) == 11
    assert round(statistics.fmean(chosen), 2) == average


def test_names_are_those_of_this_project():
    names = {key: {figure.same[key] for figure in FIGURES} for key in ("dataset", "method", "backbone")}
    assert names["dataset"] == set(PUBLISHED)
    for group, key in (("dataset", "dataset"), ("method", "method")):
        assert all((conf_dir() / group / f"{name}.yaml").is_file() for name in names[key])
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        models = {compose("train", overrides=[f"backbone={name}"]).backbone.name for name in BACKBONES}
        templates = {name: compose("train", overrides=[f"dataset={name}"]).dataset.template for name in PUBLISHED}
    assert names["backbone"] == models
    for figure in FIGURES:
        if "dataset.template" in figure.setting:
            assert figure.setting["dataset.template"] == templates[figure.same["dataset"]]


BACKBONES = ("rn50", "rn101", "vit_b32", "vit_b16")


def test_the_difference_in_the_same_setting(tmp_path):
    for seed, acc in ((1, 0.91), (2, 0.92), (3, 0.93)):
        write_run(tmp_path / str(seed), seed=seed, acc=acc, **{"zero_shot/acc": 0.8629})
    zero_shot, coop = study_of(tmp_path).comparisons
    assert (coop.figure.accuracy, coop.figure.confidence) == (91.83, "recalled")
    assert coop.difference == pytest.approx(0.17)
    assert not coop.unchecked
    assert (zero_shot.figure.accuracy, zero_shot.figure.confidence) == (86.29, "verified")
    assert zero_shot.difference == pytest.approx(0)


def test_several_figures_for_one_of_ours(tmp_path):
    write_run(tmp_path / "run", dataset="imagenet", num_classes=1000, epochs=50, acc=0.61)
    figures = {(item.figure.table, item.figure.accuracy): item.difference for item in compared(tmp_path)}
    assert figures == {
        ("few-shot", 62.95): pytest.approx(-1.95),
        ("domain generalization", 62.95): pytest.approx(-1.95),
        ("released code re-run", 60.6): pytest.approx(0.4),
        ("released code re-run", 60.9): pytest.approx(0.1),
    }


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"pretrained": "yfcc15m"}, "pretrained is yfcc15m here, openai there"),
        ({"split": "generated"}, "split is generated here, published there"),
        ({"classes": "base"}, "classes is base here, all there"),
        ({"class_specific": True}, "class_specific is true here, false there"),
        ({"class_token_position": "middle"}, "class_token_position is middle here, end there"),
        ({"augmentation": "none"}, "augmentation is none here, online there"),
        ({"epochs": 50}, "epochs is 50 here, 200 there"),
        ({"batch_size": 64}, "batch_size is 64 here, 32 there"),
        ({"config": {"optimizer": {"lr": 0.01}}}, "optimizer.lr is 0.01 here, 0.002 there"),
        ({"config": {"method": {"ctx_init": "a photo of a"}}}, "method.ctx_init is a photo of a here, null there"),
    ],
)
def test_another_setting_is_not_compared(tmp_path, changed, why):
    write_run(tmp_path / "run", **changed)
    (item,) = compared(tmp_path)
    assert item.differing == (why,)
    assert item.difference is None
    tables = {table.name: table for table in published_tables(study_of(tmp_path))}
    assert ["few-shot", why] in [row[:2] for row in tables["not_compared"].rows]
    shown = [row for table in tables.values() if table.name == "published" for row in table.rows]
    assert not any("91.83" in row for row in shown)


@pytest.mark.parametrize(
    "changed",
    [
        {"dataset": "mini"},
        {"backbone": "RN50"},
        {"method": "clip_adapter"},
        {"shots": 3},
        {"n_ctx": 8},
    ],
)
def test_something_else_has_no_published_figure(tmp_path, changed):
    write_run(tmp_path / "run", **changed)
    assert compared(tmp_path) == []


def test_what_was_not_recorded_is_marked(tmp_path):
    write_run(tmp_path / "run", config=False)
    (item,) = compared(tmp_path)
    assert item.difference == pytest.approx(80 - 91.83)
    assert item.unchecked == ("method.ctx_init", "optimizer.lr")
    table = published_tables(study_of(tmp_path))[0]
    assert table.rows[1][4] == "recalled †"
    assert "not known to be the same: dataset.template, method.ctx_init, optimizer.lr." in table.note


def test_openai_weights_from_a_file_are_marked(tmp_path):
    write_run(tmp_path / "run", pretrained="/weights/RN50.pt")
    (item,) = compared(tmp_path)
    assert item.same_setting and item.unchecked == ("whether RN50.pt is openai's",)
    write_run(tmp_path / "run", pretrained="/weights/mine.pt")
    (item,) = compared(tmp_path)
    assert item.differing == ("pretrained is mine.pt here, openai there",)


def test_a_low_figure_is_shown_and_not_compared(tmp_path):
    figures = tmp_path / "figures.csv"
    figures.write_text(HEADER + "t,caltech101,coop,RN50-quickgelu,16,16,classes=all,90.0,low,memory\n")
    write_run(tmp_path / "run")
    (item,) = compared(tmp_path, read_figures(figures))
    assert item.same_setting and not item.comparable and item.difference is None
    row = published_tables(study_of(tmp_path, read_figures(figures)))[0].rows[0]
    assert row[4] == "low" and row[-2:] == ["90.00", "–"]  # noqa: RUF001
    assert "confidence is low" in published_csv(study_of(tmp_path, read_figures(figures))).decode()


def test_no_low_figure_is_comparable_by_itself():
    assert all(not figure.setting for figure in FIGURES if figure.confidence == "low")


def test_a_source_that_states_no_setting_is_not_compared(tmp_path):
    write_run(tmp_path / "run", backbone="ViT-B-16-quickgelu")
    (item,) = compared(tmp_path)
    assert item.figure.accuracy == 95.6 and not item.differing
    assert item.difference is None
    (table,) = published_tables(study_of(tmp_path))
    why = "the source does not say in which setting"
    assert table.rows == [["few-shot, re-run by later work", why, "2"]]  # coop and zero-shot


def test_domain_generalization(tmp_path):
    write_run(tmp_path / "run", dataset="imagenet", num_classes=1000, epochs=50, n_ctx=4)
    write_evaluation(
        tmp_path / "to",
        tmp_path / "run",
        {"imagenetv2": 0.55, "imagenet_a": 0.24},
        imagenetv2={"num_classes": 1000},
        imagenet_a={"num_classes": 200},
    )
    items = {item.figure.same["dataset"]: item for item in compared(tmp_path)}
    assert items["imagenetv2"].difference == pytest.approx(55 - 55.40)
    assert items["imagenet_a"].difference == pytest.approx(24 - 23.06)
    assert items["imagenet"].difference == pytest.approx(80 - 63.33)
    zero_shot = [item for item in study_of(tmp_path).comparisons if item.cell.method == "zero_shot"]
    on_a = next(item for item in zero_shot if item.figure.same["dataset"] == "imagenet_a")
    assert on_a.difference == pytest.approx(14 - 21.65)
    assert on_a.unchecked == ("dataset.template",)


def test_among_all_classes_imagenet_a_is_another_task(tmp_path):
    write_run(tmp_path / "run", dataset="imagenet", num_classes=1000, epochs=50, n_ctx=4)
    wrong = {"num_classes": 1000}
    write_evaluation(tmp_path / "to", tmp_path / "run", {"imagenet_a": 0.24}, imagenet_a=wrong)
    items = [item for item in compared(tmp_path) if item.figure.same["dataset"] == "imagenet_a"]
    assert [item.differing for item in items] == [("num_classes is 1000 here, 200 there",)]


def test_base_to_new(tmp_path):
    init = {"method": {"ctx_init": "a photo of a"}}
    write_run(tmp_path / "run", backbone="ViT-B-16-quickgelu", n_ctx=4, classes="base", acc=0.98, config=init)
    new = {"classes": "new"}
    write_evaluation(tmp_path / "to", tmp_path / "run", {"caltech101": 0.9}, caltech101=new)
    differences = {item.figure.accuracy: item.difference for item in compared(tmp_path) if item.comparable}
    assert differences == {98.0: pytest.approx(0.0), 89.81: pytest.approx(0.19)}


def test_average_beside_the_average(tmp_path):
    for data in ("caltech101", "dtd"):
        write_run(tmp_path / data, dataset=data, acc=0.8)
    (item,) = [item for item in published_averages(study_of(tmp_path)) if item.curve.method == "coop"]
    # Caltech101 at 16 shots: 91.83, recalled; DTD: 63.58, verified; their average 77.705.
    assert item.published == pytest.approx(77.705)
    assert item.confidence == "recalled"
    assert 100 * item.ours.mean - item.published == pytest.approx(2.295)
    row = item.row()
    assert (row[0], row[-3]) == ("average of 2 data sets", "80.00 (1)")


def test_no_average_where_one_data_set_has_no_figure(tmp_path):
    for data in ("caltech101", "mini"):
        write_run(tmp_path / data, dataset=data)
    assert published_averages(study_of(tmp_path)) == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("t,caltech101,coop,RN50,16,16,,90.0,sure,memory", "line 2: .*confidence 'sure'"),
        ("t,caltech101,coop,RN50,many,16,,90.0,low,memory", "line 2: not a published figure"),
        ("t,caltech101,coop,RN50,16,16,classes,90.0,low,memory", "line 2: not a published figure"),
        ("t,caltech101,coop", "line 2: not a published figure"),
    ],
)
def test_a_line_that_is_not_a_figure(tmp_path, line, message):
    path = tmp_path / "expected.csv"
    path.write_text(f"{HEADER}{line}\n")
    with pytest.raises(CoopError, match=message):
        read_figures(path)


def test_a_file_that_is_not_of_this_form(tmp_path):
    with pytest.raises(CoopError, match="cannot be read"):
        read_figures(tmp_path / "gone.csv")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(CoopError, match="lacks the columns accuracy_percent, backbone"):
        read_figures(tmp_path / "other.csv")


def test_nothing_published_nothing_shown(tmp_path):
    write_run(tmp_path / "run")
    assert published_tables(study_of(tmp_path, [])) == []
    assert compare([], []) == []
