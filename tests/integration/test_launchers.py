"""Sweeps in several processes of one machine, and as jobs of SLURM."""

import json
from pathlib import Path

import pytest
from hydra.errors import MissingConfigException
from slurm_stand_in import write_slurm_commands

from coop.launch import explain

GRID = ["-m", "coop.train", "-m"]
CELLS = ["shots=1,2", "seed=1", "epochs=1", "method.n_ctx=2"]


def finished(sweep: Path) -> set[int]:
    return {json.loads(path.read_text())["shots"] for path in sweep.rglob("results.json")}


@pytest.mark.slow
def test_joblib(run, small, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "features=online", "num_workers=1"]
    arguments = [*GRID, *small, *CELLS, *launcher, f"hydra.sweep.dir={tmp_path}"]
    done = run.interpreter(*arguments)
    assert done.code == 0, done.err
    assert "2 of 2 runs finished, 0 failed" in done.err
    assert finished(tmp_path) == {1, 2}
    failing = run.interpreter(*arguments, "method.n_ctx=0,2")
    assert failing.code == 1
    assert "2 of 4 runs finished, 2 failed" in failing.err
    assert failing.err.count("already finished") == 2


@pytest.mark.slow
def test_slurm(run, small, tmp_path):
    """On a stand-in for SLURM's commands; what it is asked for is what the config says."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    path = write_slurm_commands(tmp_path / "bin", tmp_path / "log")
    launcher = ["hydra/launcher=slurm", "hydra.launcher.partition=gpu", "hydra.launcher.gpus_per_node=2"]
    done = run.interpreter(*GRID, *small, *CELLS, *launcher, f"hydra.sweep.dir={tmp_path / 'sweep'}", PATH=path)
    assert done.code == 0, done.err + (tmp_path / "log").read_text()
    assert "2 of 2 runs finished, 0 failed" in done.err
    assert finished(tmp_path / "sweep") == {1, 2}
    (script,) = (tmp_path / "sweep/.submitit").glob("*.sh")
    asked = {line.removeprefix("#SBATCH ") for line in script.read_text().splitlines() if line.startswith("#SBATCH")}
    assert {"--partition=gpu", "--gpus-per-node=2", "--array=0-1%2", "--time=240", "--mem=32GB"} <= asked


def test_slurm_where_there_is_none(run, small, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    arguments = ["-m", *small, *CELLS, "hydra/launcher=slurm", f"hydra.sweep.dir={tmp_path}"]
    done = run("train", *arguments, PATH=str(tmp_path))  # also where these tests run on a cluster
    assert done.code == 1
    assert done.error.startswith("hydra/launcher=slurm: no SLURM here")


@pytest.mark.parametrize(
    ("choice", "extra"),
    [
        ("hydra/launcher/joblib", "joblib"),
        ("hydra/launcher/submitit_slurm", "slurm"),
        ("hydra/sweeper/optuna", "optuna"),
    ],
)
def test_a_plugin_that_is_not_installed(choice, extra):
    missing = MissingConfigException(missing_cfg_file=choice, message="Could not find it", options=None)
    assert explain(missing).endswith(f"needs a plugin of Hydra: pip install 'coop-clip[{extra}]'")
