"""Shared fixtures: the deterministic small CLIP of the reference figures, the bundled one, and real data where given."""

# ruff: noqa: E402
import gc

gc.disable()  # until all is collected: a quarter of the time that imports take

import gzip
import json
import os
import sys
from pathlib import Path

import pytest
import torch

from coop import FrozenCLIP

TESTS = Path(__file__).parent
sys.path.insert(0, str(TESTS))
# With a second busy process on a small machine, spinning OpenMP threads make a step several times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)

import small_clip as small


def pytest_collection_finish() -> None:
    """What has been imported and collected stays: no search for garbage has to go through it again."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With `-n`: half of the tests each, in their order, so that few fixtures are made twice; who is idle takes over."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)


@pytest.fixture(scope="session")
def small_clip() -> FrozenCLIP:
    """The small CLIP that the reference figures were computed with."""
    return FrozenCLIP(small.small_clip(), small.tokenizer(), name="small")


@pytest.fixture(scope="session")
def tiny_clip() -> FrozenCLIP:
    """The bundled CLIP."""
    import coop

    return FrozenCLIP.load(f"local-dir:{Path(coop.__file__).parent / 'assets' / 'tiny_clip'}", name="tiny")


@pytest.fixture(scope="session")
def reference() -> dict:
    """Figures computed with the CoOp authors' code (see tests/data/README.md)."""
    with gzip.open(TESTS / "data" / "coop_reference.json.gz", "rt") as file:
        return json.load(file)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder that holds `caltech-101/`, where COOP_TEST_DATA names one."""
    folder = os.environ.get("COOP_TEST_DATA")
    if not folder:
        pytest.skip("COOP_TEST_DATA is not set")
    return Path(folder)
