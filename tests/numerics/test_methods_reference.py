"""Our figures against those of each method's authors' code: every variant of every file of a folder.

COOP_METHOD_REFERENCE names another folder; all settings come from the files. What a method's figures mean is in
`reference_checks/`, a module for each method.
"""

import gzip
import importlib
import json
import os
from pathlib import Path

import pytest
from reference_checks.common import Settings

FOLDER = Path(os.environ.get("COOP_METHOD_REFERENCE") or Path(__file__).parents[1] / "data" / "methods")
CHECKS = Path(__file__).parent / "reference_checks"


def read(path: Path) -> dict:
    content = path.read_bytes()
    return json.loads(gzip.decompress(content) if path.suffix == ".gz" else content)


def method_of(content: dict) -> str:
    """The method's name here; files begin with it, in the authors' spelling, and may go on with a description."""
    said = content["method"].lower()
    known = [name for name in names() if said.startswith(name)]
    return max(known, key=len) if known else pytest.skip(f"{content['method']}: not a method of this version")


def names() -> list[str]:
    return [path.stem for path in CHECKS.glob("*.py") if path.stem != "common"]


def variants():
    for path in sorted([*FOLDER.glob("*.json"), *FOLDER.glob("*.json.gz")]):
        content = read(path)
        for name, variant in content["variants"].items():
            yield pytest.param(content, variant, id=f"{path.name.split('.')[0]}-{name}")


@pytest.mark.parametrize(("content", "variant"), variants())
def test_equal_to_the_authors_code(content, variant, tmp_path):
    module = importlib.import_module(f"reference_checks.{method_of(content)}")
    settings = Settings(variant["settings"])
    try:
        module.check(content, variant | {"settings": settings}, tmp_path)
    except AssertionError as error:
        error.add_note(f"settings that had no part in this check: {settings.unread()}")
        raise


def test_there_are_figures():
    assert list(variants()), f"{FOLDER}: no files"
