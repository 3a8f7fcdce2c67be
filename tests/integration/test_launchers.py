"""Sweeps in several processes of one machine, and as jobs of SLURM."""

import json
from pathlib import Path

import pytest
from hydra.errors import MissingConfigException
from slurm_stand_in import write_slurm_commands

from coop.cli.messages import explain

pytestmark = pytest.mark.usefixtures("plain")

GRID = ["-m", "coop.train", "-m"]
SETTINGS = ["shots=1,2", "seed=1", "epochs=1", "method.n_ctx=2"]


def finished(sweep: Path) -> set[int]:
    return {json.loads(path.read_text())["shots"] for path in sweep.rglob("results.json")}


@pytest.mark.slow
def test_joblib(run, small, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "features=online", "num_workers=1"]
    arguments = [*GRID, *small, *SETTINGS, *launcher, f"hydra.sweep.dir={tmp_path}"]
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
    done = run.interpreter(*GRID, *small, *SETTINGS, *launcher, f"hydra.sweep.dir={tmp_path / 'sweep'}", PATH=path)
    assert done.code == 0, done.err + (tmp_path / "log").read_text()
    assert "2 of 2 runs finished, 0 failed" in done.err
    assert finished(tmp_path / "sweep") == {1, 2}
    (script,) = (tmp_path / "sweep/.submitit").glob("*.sh")
    asked = {line.removeprefix("#SBATCH ") for line in script.read_text().splitlines() if line.startswith("#SBATCH")}
    assert {"--partition=gpu", "--gpus-per-node=2", "--array=0-1%2", "--time=240", "--mem=32GB"} <= asked


def test_slurm_where_there_is_none(run, small, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    arguments = ["-m", *small, *SETTINGS, "hydra/launcher=slurm", f"hydra.sweep.dir={tmp_path}"]
    done = run("train", *arguments, PATH=str(tmp_path))  # also where these tests run on a cluster
    assert done.code == 1
    assert done.error.startswith("hydra/launcher=slurm: no SLURM here")


@pytest.mark.parametrize(
    "refusal", ["Invalid generic resource (gres) specification", "Invalid partition name specified"]
)
def test_what_sbatch_refuses_ends_in_one_message(run, small, tmp_path, refusal):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    path = write_slurm_commands(tmp_path / "bin", tmp_path / "log")
    (tmp_path / "bin/sbatch").write_text(f"#!/bin/bash\necho 'sbatch: error: {refusal}' >&2\nexit 1\n")
    done = run("train", "-m", *small, *SETTINGS, "hydra/launcher=slurm", f"hydra.sweep.dir={tmp_path}/sweep", PATH=path)
    assert done.code == 1
    assert done.error.startswith(f"hydra/launcher=slurm: sbatch refuses the jobs: {refusal}; set hydra.launcher.")


def test_a_job_that_is_gone_without_a_result():
    text = "Job 7_0 (task: 0) with path /x/7_0_0_result.pkl\nhas not produced any output (state: CANCELLED)\nNo error."
    assert explain(RuntimeError(text)).startswith(
        "hydra/launcher=slurm: a job has not produced any output (state: CANCELLED); start the same command again"
    )


def test_within_a_job_of_slurm(run, small, tmp_path):
    """A terminal on a node, and tests there: Lightning would take a run for one of the job's four tasks."""
    path = write_slurm_commands(tmp_path / "bin", tmp_path / "log")
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "4", "SLURM_NNODES": "1"}
    done = run("train", *small, "epochs=1", f"hydra.run.dir={tmp_path / 'run'}", PATH=path, **job)
    assert done.code == 0, done.err
    assert json.loads((tmp_path / "run/results.json").read_text())["epochs"] == 1


def test_lightning_has_no_hints_to_give(run, small, tmp_path):
    """Where srun is installed, and with fewer steps in an epoch than between two rows of the log."""
    path = write_slurm_commands(tmp_path / "bin", tmp_path / "log")
    own = ["logger=csv", "epochs=1"]
    done = run("train", *small, *own, f"hydra.run.dir={tmp_path / 'run'}", PATH=path)
    assert done.code == 0, done.err
    for word in ("srun", "log_every_n_steps", "logging interval", "HINT", "Tip", "Warning"):
        assert word not in done.err, done.err


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
