"""The notebooks run from the first cell to the last, and are kept without their outputs."""

import json
import re
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
NAMES = sorted(path.name for path in NOTEBOOKS.glob("*.ipynb"))
SECONDS = 300  # for one cell; on an idle core one takes 5 to 20


def code_cells(name: str) -> list[dict]:
    cells = json.loads((NOTEBOOKS / name).read_text())["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def test_both_are_there():
    assert NAMES == ["quickstart.ipynb", "your_data.ipynb"]


@pytest.mark.parametrize("name", NAMES)
def test_kept_without_outputs(name):
    for cell in code_cells(name):
        assert (cell["outputs"], cell["execution_count"]) == ([], None), "nbstripout notebooks/*.ipynb"


@pytest.fixture
def executed(tmp_path, monkeypatch):
    """Executes a notebook in a folder of its own; returns all that its cells wrote."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    for key, value in {"HOME": tmp_path, "IPYTHONDIR": tmp_path, "OMP_NUM_THREADS": 1, "WANDB_MODE": "offline"}.items():
        monkeypatch.setenv(key, str(value))

    def execute(name: str) -> list[str]:
        book = nbformat.read(NOTEBOOKS / name, as_version=4)
        nbclient.NotebookClient(book, timeout=SECONDS, resources={"metadata": {"path": str(tmp_path)}}).execute()
        outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
        text = [output.get("text") or "".join(output.get("data", {}).get("text/plain", "")) for output in outputs]
        assert not [line for part in text for line in part.splitlines() if line.startswith(("error:", "Traceback"))]
        return text + [kind for output in outputs for kind in output.get("data", {})]

    return execute


def percentages(written: list[str], start: str) -> list[float]:
    """What stands in the one line that starts so."""
    lines = [line for text in written for line in text.splitlines() if line.startswith(start)]
    assert len(lines) == 1, lines
    return [float(number) for number in re.findall(r"(\d+\.\d)%", lines[0])]


@pytest.mark.slow
def test_quickstart(executed):
    written = executed("quickstart.ipynb")
    zero_shot, learned = percentages(written, "zero-shot")
    assert zero_shot > 50 and learned > 50
    assert written.count("image/png") == 1 and written.count("text/html") == 1, "predictions, and the run itself"
    assert any("training: 100%" in text for text in written), "a progress bar"


@pytest.mark.slow
def test_your_data(executed):
    written = executed("your_data.ipynb")
    for seed in (1, 2):
        assert min(percentages(written, f"seed {seed}")) > 50
    assert percentages(written, "estimator")[0] > 50
    assert written.count("text/html") == 2, "a run, and the report"
