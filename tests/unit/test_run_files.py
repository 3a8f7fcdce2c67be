"""The names of a run's files stand in one place."""

import ast
from pathlib import Path

import coop
from coop import runs

NAMES = {value for name, value in vars(runs).items() if name.isupper()} - {runs.LOCK}  # an ending elsewhere
# Keys of the report and of configs that are called like a file.
KEYS = {("report", "config.yaml")}


def test_no_other_module_spells_one_out():
    package = Path(coop.__file__).parent
    for path in package.rglob("*.py"):
        if path == package / "runs" / "__init__.py":
            continue
        room = path.relative_to(package).parts[0]
        spelled = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        found = {
            name for name in NAMES & {text for text in spelled if isinstance(text, str)} if (room, name) not in KEYS
        }
        assert not found, f"{path}: {found}"
