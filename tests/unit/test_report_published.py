"""The published figures: what stands in published.csv, and when one is held against ours."""

import math
import statistics
from collections import Counter

import pytest
from configs import composed
from synthetic_runs import write_evaluation, write_run

from coop.config import conf_dir
from coop.data.tools.catalogue import PUBLISHED
from coop.errors import CoopError
from coop.report.published import AVERAGES, read_published
from coop.report.records import read_runs
from coop.report.study import make_study
from coop.report.tables import panels, places, published_tables

PUBLISHED_FIGURES = read_published()
FIGURES = list(PUBLISHED_FIGURES.itertuples())
HEADER = "table,dataset,method,backbone,shots,n_ctx,setting,accuracy_percent,confidence,source\n"


def study_of(folder, figures=PUBLISHED_FIGURES):
    return make_study(read_runs([folder]), figures)


def compared(folder, figures=PUBLISHED_FIGURES):
    return [pair for pair in pairs_of(folder, figures) if pair.method != "zero_shot"]


def pairs_of(folder, figures=PUBLISHED_FIGURES):
    return list(study_of(folder, figures).comparisons.itertuples())


def rows(table):
    return table.frame.to_numpy().tolist()


def averages(folder):
    study = study_of(folder)
    return [
        row
        for _, curves in panels(study)
        for row in study.beside(curves, [place for place in places(curves) if len(place[1]) > 1]).to_dict("records")
    ]


def test_all_figures_are_there():
    assert len(FIGURES) == 996
    assert Counter(figure.confidence for figure in FIGURES) == {"recalled": 668, "verified": 271, "low": 57}


@pytest.mark.parametrize(
    ("shots", "average"), [(0, 58.77), (1, 59.59), (2, 62.32), (4, 66.77), (8, 69.89), (16, 73.42)]
)
def test_averages_over_the_data_sets_are_the_published_ones(shots, average):
    method = "coop" if shots else "zero_shot"
    chosen = [
        figure.accuracy_percent
        for figure in FIGURES
        if figure.table == "few-shot" and (figure.method, figure.shots) == (method, shots)
    ]
    assert len(chosen) == 11
    assert round(statistics.fmean(chosen), 2) == average


def test_names_are_those_of_this_project():
    names = {key: set(PUBLISHED_FIGURES[key]) for key in ("dataset", "method", "backbone")}
    assert names["dataset"] == set(PUBLISHED) | set(AVERAGES)
    # Methods that this project does not have keep the names under which they were published.
    ours = {name for name in names["method"] if name == name.lower()}
    assert all((conf_dir() / "method" / f"{name}.yaml").is_file() for name in ours)
    assert len(ours) > 20 and "GalLoP" in names["method"] - ours
    models = {composed(f"backbone={name}").backbone.name for name in BACKBONES}
    templates = {name: composed(f"dataset={name}").dataset.template for name in PUBLISHED}
    assert names["backbone"] == models
    for figure in FIGURES:
        if "dataset.template" in figure.stated:
            assert figure.stated["dataset.template"] == templates[figure.dataset]


BACKBONES = ("rn50", "rn101", "vit_b32", "vit_b16", "vit_l14", "laion_vit_b32", "laion_vit_b16", "laion_vit_l14",
             "laion_vit_h14", "laion_vit_bigg14")  # fmt: skip


def test_the_difference_in_the_same_setting(tmp_path):
    for seed, acc in ((1, 0.91), (2, 0.92), (3, 0.93)):
        write_run(tmp_path / str(seed), seed=seed, acc=acc, **{"zero_shot/acc": 0.8629})
    zero_shot, coop = pairs_of(tmp_path)
    assert (coop.accuracy_percent, coop.confidence) == (91.83, "recalled")
    assert coop.difference == pytest.approx(0.17)
    assert not coop.unchecked
    assert (zero_shot.accuracy_percent, zero_shot.confidence) == (86.29, "verified")
    assert zero_shot.difference == pytest.approx(0)


def test_several_figures_for_one_of_ours(tmp_path):
    write_run(tmp_path / "run", dataset="imagenet", num_classes=1000, epochs=50, acc=0.61)
    same = [item for item in compared(tmp_path) if item.same_setting]
    figures = {(item.table, item.accuracy_percent): item.difference for item in same}
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
    assert math.isnan(item.difference)
    tables = {table.name: table for table in published_tables(study_of(tmp_path))}
    assert ["few-shot", why] in [row[:2] for row in rows(tables["not_compared"])]
    shown = [row for table in tables.values() if table.name == "published" for row in rows(table)]
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
    assert rows(table)[1][4] == "◇ recalled †"
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
    (item,) = compared(tmp_path, read_published(figures))
    assert item.same_setting and not item.comparable and math.isnan(item.difference)
    row = rows(published_tables(study_of(tmp_path, read_published(figures)))[0])[0]
    assert row[4] == "? low" and row[-2:] == ["90.00", "–"]  # noqa: RUF001


def test_a_source_that_states_no_setting_is_not_compared(tmp_path):
    write_run(tmp_path / "run", backbone="ViT-B-16-quickgelu")
    (item,) = [item for item in compared(tmp_path) if item.table == "few-shot, re-run by later work"]
    assert item.accuracy_percent == 95.6 and not item.differing
    assert math.isnan(item.difference)
    table = published_tables(study_of(tmp_path))[-1]
    why = "the source does not say in which setting"
    assert ["few-shot, re-run by later work", why, "2"] in rows(table)  # coop and zero-shot


def test_domain_generalization(tmp_path):
    write_run(tmp_path / "run", dataset="imagenet", num_classes=1000, epochs=50, n_ctx=4)
    write_evaluation(
        tmp_path / "to",
        tmp_path / "run",
        {"imagenetv2": 0.55, "imagenet_a": 0.24},
        imagenetv2={"num_classes": 1000},
        imagenet_a={"num_classes": 200},
    )
    items = {item.dataset: item for item in compared(tmp_path) if item.table == "domain generalization"}
    assert items["imagenetv2"].difference == pytest.approx(55 - 55.40)
    assert items["imagenet_a"].difference == pytest.approx(24 - 23.06)
    assert items["imagenet"].difference == pytest.approx(80 - 63.33)
    zero_shot = [item for item in pairs_of(tmp_path) if item.method == "zero_shot"]
    on_a = next(item for item in zero_shot if item.dataset == "imagenet_a")
    assert on_a.difference == pytest.approx(14 - 21.65)
    assert on_a.unchecked == ("dataset.template",)


def test_among_all_classes_imagenet_a_is_another_task(tmp_path):
    write_run(tmp_path / "run", dataset="imagenet", num_classes=1000, epochs=50, n_ctx=4)
    wrong = {"num_classes": 1000}
    write_evaluation(tmp_path / "to", tmp_path / "run", {"imagenet_a": 0.24}, imagenet_a=wrong)
    items = [item for item in compared(tmp_path) if item.dataset == "imagenet_a"]
    assert [item.differing for item in items] == [("num_classes is 1000 here, 200 there",)]


def test_base_to_new(tmp_path):
    init = {"method": {"ctx_init": "a photo of a"}}
    write_run(tmp_path / "run", backbone="ViT-B-16-quickgelu", n_ctx=4, classes="base", acc=0.98, config=init)
    new = {"classes": "new"}
    write_evaluation(tmp_path / "to", tmp_path / "run", {"caltech101": 0.9}, caltech101=new)
    differences = {item.accuracy_percent: item.difference for item in compared(tmp_path) if item.comparable}
    assert differences == {98.0: pytest.approx(0.0), 89.81: pytest.approx(0.19)}


def test_average_beside_the_average(tmp_path):
    for data in ("caltech101", "dtd"):
        write_run(tmp_path / data, dataset=data, acc=0.8)
    (item,) = [item for item in averages(tmp_path) if item["method"] == "coop"]
    # Caltech101 at 16 shots: 91.83, recalled; DTD: 63.58, verified; their average 77.705.
    assert item["accuracy_percent"] == pytest.approx(77.705)
    assert item["confidence"] == "recalled"
    assert item["difference"] == pytest.approx(2.295)
    row = rows(published_tables(study_of(tmp_path))[0])[-1]
    assert (row[0], row[2], row[-3]) == ("average of 2 data sets", "RN50-quickgelu", "80.00 (1)")


def test_no_average_where_one_data_set_has_no_figure(tmp_path):
    for data in ("caltech101", "mini"):
        write_run(tmp_path / data, dataset=data)
    assert averages(tmp_path) == []


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
    path = tmp_path / "mine.csv"
    path.write_text(f"{HEADER}{line}\n")
    with pytest.raises(CoopError, match=message):
        read_published(path)


def test_a_file_that_is_not_of_this_form(tmp_path):
    with pytest.raises(CoopError, match="cannot be read"):
        read_published(tmp_path / "gone.csv")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(CoopError, match="lacks the columns accuracy_percent, backbone"):
        read_published(tmp_path / "other.csv")


def test_nothing_published_nothing_shown(tmp_path):
    write_run(tmp_path / "run")
    assert published_tables(study_of(tmp_path, PUBLISHED_FIGURES[:0])) == []
