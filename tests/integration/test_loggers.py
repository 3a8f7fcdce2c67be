"""W&B, offline: groups, tables, pictures, one run that goes on after a kill, and a dashboard of what was logged."""

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
from wandb_files import history, media, offline_folders, run_of, summary, table

from coop import CoopError, dashboard
from coop.training.loggers import result_tables

PER_CLASS = {
    "classes": [{"classname": "ewer", "n_test": 20, "acc": 0.95}, {"classname": "ibis", "n_test": 10, "acc": 0.5}],
    "confused": [{"classname": "ibis", "predicted": "ewer", "count": 5}],
    "calibration": {"ece": 0.125, "bins": [{"confidence": 0.75, "acc": 0.5, "count": 30}]},
}
WORDS = {
    "metric": "euclidean",
    "vectors": [
        {"vector": 1, "classname": None, "words": [{"word": "a", "distance": 0.5}, {"word": "of", "distance": 0.75}]},
        {"vector": 2, "classname": None, "words": [{"word": "photo", "distance": 0.25}]},
    ],
}
WORD_ROWS = [[None, 1, 1, "a", 0.5], [None, 1, 2, "of", 0.75], [None, 2, 1, "photo", 0.25]]


def test_tables_of_what_is_there(tmp_path):
    assert result_tables(tmp_path) == {}
    (tmp_path / "words.json").write_text(json.dumps(WORDS))
    columns = ["classname", "vector", "rank", "word", "distance"]
    assert result_tables(tmp_path) == {"words": (columns, WORD_ROWS)}
    (tmp_path / "per_class.json").write_text(json.dumps(PER_CLASS))
    found = result_tables(tmp_path)
    assert found["per_class"] == (["classname", "n_test", "acc"], [["ewer", 20, 0.95], ["ibis", 10, 0.5]])
    assert found["confused"] == (["classname", "predicted", "count"], [["ibis", "ewer", 5]])
    assert found["calibration"] == (["confidence", "acc", "count"], [[0.75, 0.5, 30]])


@pytest.fixture(scope="module")
def resumed(run, small, work) -> Path:
    """The folder of a run that was killed and resumed, with W&B."""
    folder = work / "with wandb"
    arguments = [*small, "epochs=60", "logger=wandb", f"hydra.run.dir={folder}"]
    process = run.start("train", *arguments)
    deadline = time.monotonic() + 60
    while not (folder / "last.ckpt").exists():
        assert process.is_alive(), process.files[1].read_text()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    run.finish(process)
    assert not (folder / "results.json").exists()
    done = run("train", *arguments)
    assert done.code == 0, done.err
    return folder


def test_a_resumed_run_continues_its_wandb_run(resumed):
    """Offline, every start writes a folder of its own; `wandb sync` joins those of one id in the order of their start."""
    folders, kept = offline_folders(resumed), (resumed / "wandb_id.txt").read_text().strip()
    assert [folder.name.rpartition("-")[2] for folder in folders] == [kept, kept]
    assert run_of(folders[1]).run_id == kept
    steps = [row["trainer/global_step"] for row in history(folders[1]) if "train/loss" in row]
    assert 0 < steps[0] < steps[-1], "the curve goes on where it was"


def test_group_and_name_of_a_run_alone(resumed):
    record = run_of(offline_folders(resumed)[-1])
    assert (record.run_group, record.display_name, record.project) == (
        "folder-4shot-coop",
        "folder-4shot-coop-seed1",
        "coop",
    )
    assert {"folder", "4shot", "coop", "seed1"} < set(record.tags)


def test_final_figures_tables_and_pictures(resumed):
    last = offline_folders(resumed)[-1]
    results = json.loads((resumed / "results.json").read_text())
    shown = summary(last)
    for key in ("test/acc", "test/macro_acc", "zero_shot/acc", "val/acc", "n_test", "fit_seconds"):
        assert shown[key] == results[key]
    expected = dict(result_tables(resumed))
    assert {"per_class", "words"} <= expected.keys()
    for name, (columns, rows) in expected.items():
        logged = table(last, f"tables/{name}")
        assert (logged["columns"], logged["data"]) == (columns, rows)
    for name in ("history", "per_class"):
        assert media(last, f"pictures/{name}").read_bytes() == (resumed / f"{name}.png").read_bytes()


def test_runs_of_a_sweep_are_one_group_and_a_failed_one_keeps_to_itself(run, small, tmp_path):
    """The second run fails after its W&B run has begun; the third must not be logged into it."""
    sweep = tmp_path / "my_sweep"
    grid = ["-m", *small, "epochs=2", "logger=wandb", "optimizer.lr=0.002,1e30,0.02", f"hydra.sweep.dir={sweep}"]
    done = run("train", *grid)
    assert done.code == 1
    assert "2 of 3 runs finished, 1 failed" in done.err
    runs = {folder.parent.parent.name: run_of(folder) for folder in sweep.rglob("offline-run-*")}
    assert len(runs) == 3
    assert {record.run_group for record in runs.values()} == {"my_sweep"}
    assert len({record.run_id for record in runs.values()}) == 3
    assert {name: record.display_name for name, record in runs.items()} == {name: name for name in runs}


def test_a_group_that_is_given(run, small, copied):
    (copied / "results.json").unlink()
    shutil.rmtree(copied / "wandb", ignore_errors=True)
    done = run("train", *small, "logger=wandb", "logger.group=mine", f"hydra.run.dir={copied}")
    assert done.code == 0, done.err
    (folder,) = offline_folders(copied)
    assert run_of(folder).run_group == "mine"


def test_the_dashboard_shows_what_a_run_logs(resumed):
    """Every figure, table and picture that the workspace asks for is one that W&B has got, under that name."""
    pytest.importorskip("wandb_workspaces")
    made = dashboard.workspace("me", "coop", "few_shot_curve", "my view")
    spec = made._to_model().spec.model_dump(by_alias=True, exclude_none=True)
    (runset,) = spec["section"]["runSets"]
    (only,) = runset["filters"]["filters"]
    assert (only["key"], only["op"], only["value"]) == ({"section": "run", "name": "group"}, "=", "few_shot_curve")
    panels = [panel for section in spec["section"]["panelBankConfig"]["sections"] for panel in section["panels"]]
    assert len(panels) == 10
    configs = [panel["config"] for panel in panels]
    curves = {name for config in configs for name in config.get("metrics", []) if config.get("xAxis")}
    bars = {name for config in configs for name in config.get("metrics", []) if not config.get("xAxis")}
    pictures = {name for config in configs for name in config.get("mediaKeys", [])}
    tables = {c["panel2Config"]["exp"]["fromOp"]["inputs"]["key"]["val"] for c in configs if "panel2Config" in c}
    last = offline_folders(resumed)[-1]
    logged = {key for row in history(last) for key in row}
    assert curves == {"train/loss", "train/acc", "val/acc"} and curves <= logged
    assert bars == {"test/acc", "zero_shot/acc"} and bars <= summary(last).keys()
    assert len(pictures) == 2 and {f"{name}/path" for name in pictures} <= logged
    assert len(tables) == 3 and {f"{name}/path" for name in tables} <= logged


def test_a_dashboard_without_a_key_or_with_a_slip_of_the_pen(monkeypatch):
    monkeypatch.setattr("wandb.login", lambda **_: False)
    with pytest.raises(CoopError, match="W&B has no key here: run `wandb login`"):
        dashboard.main(["project=coop"])
    with pytest.raises(CoopError, match="projct=coop: there is no such option"):
        dashboard.main(["projct=coop"])


def test_a_dashboard_that_cannot_be_saved_and_one_that_can(monkeypatch, capsys):
    class Saved:
        url = "https://example.org/view"

        def save(self):
            if self.broken:
                raise ConnectionError("no route")

    monkeypatch.setattr(dashboard, "workspace", lambda *asked: Saved())
    Saved.broken = True
    with pytest.raises(CoopError, match=r"me/mine: the workspace could not be saved \(no route\)"):
        dashboard.main(["entity=me", "project=mine"])
    Saved.broken = False
    assert dashboard.main(["entity=me", "project=mine"]) == 0
    assert capsys.readouterr().out == "workspace   https://example.org/view\n"


def test_a_dashboard_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    with pytest.raises(CoopError, match=r"pip install 'coop-clip\[dashboard\]'"):
        dashboard.workspace("me", "coop", None, "coop")
