"""trainer.compile=true: slow to start, the same result."""

import json

import pytest


@pytest.mark.slow
def test_a_compiled_run_ends_as_a_plain_one(run, small, tmp_path):
    for compiled in ("false", "true"):
        done = run("train", *small, f"trainer.compile={compiled}", f"hydra.run.dir={tmp_path / compiled}")
        assert done.code == 0, done.err
    plain, compiled = (
        json.loads((tmp_path / name / "history.json").read_text())["epochs"] for name in ("false", "true")
    )
    for a, b in zip(plain, compiled, strict=True):
        assert b["train/loss"] == pytest.approx(a["train/loss"], rel=1e-4)
        assert b["ctx_moved"] == pytest.approx(a["ctx_moved"], rel=1e-2)
