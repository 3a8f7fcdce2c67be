"""Which room may import which (CONTRIBUTING.md): downwards only, and never in a circle."""

import ast
from pathlib import Path

import pytest

import coop

PACKAGE = Path(coop.__file__).parent
# From the top down. A module may import modules of its own room and of the rooms below.
ROOMS = [
    {"train", "evaluate", "predict", "export", "interpret", "convert", "cache", "dashboard", "search", "retrieve"}
    | {"sklearn"},
    {"cli"},
    {"evaluation", "training", "report", "retrieval"},
    {"runs"},
    {"data"},
    {"config"},
    {"methods"},
    {"clip"},
    {"optim"},
    {"system", "errors"},
]
COMMANDS = {"report.__main__", "data.__main__"}  # of their packages, but above the command line's room
NOT_COMMANDS = {"__init__", "config", "errors"}
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}


def floor(module: str) -> int:
    """The number of a module's room, 0 at the top."""
    if module in COMMANDS:
        return 0
    return next(number for number, rooms in enumerate(ROOMS) if module.split(".")[0] in rooms)


def imports(module: str) -> set[str]:
    """The modules of coop that one imports when it is run, anywhere in it."""
    found = set()
    tree = ast.parse(MODULES[module].read_text())
    for_types = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in set(ast.walk(tree)) - for_types:
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "coop":
            inside = node.module[5:]
            found |= {
                name if (name := f"{inside}.{alias.name}".lstrip(".")) in MODULES else inside for alias in node.names
            }
        elif isinstance(node, ast.Import):
            found |= {alias.name[5:] for alias in node.names if alias.name.startswith("coop.")}
    return found - {""}


@pytest.mark.parametrize("module", sorted(MODULES.keys() - {"__init__"}))
def test_imports_run_downwards(module):
    above = {other for other in imports(module) if floor(other) < floor(module)}
    assert not above, f"coop.{module} imports what stands above it: {sorted(above)}"


def test_no_module_imports_itself_by_a_detour():
    graph = {
        module: {other for other in imports(module) if other != module} for module in MODULES if module != "__init__"
    }
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, f"a circle: {' -> '.join((*way, module))}"
        if module not in done:
            for other in graph.get(module, ()):
                visit(other, (*way, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_the_root_holds_commands():
    files = {path.stem for path in PACKAGE.glob("*.py")}
    assert files == ROOMS[0] | NOT_COMMANDS


def test_methods_know_their_base_and_coops_prompt_alone():
    for module in MODULES:
        if module.startswith("methods.") and module != "methods.base":
            others = {other for other in imports(module) if other.startswith("methods.")}
            assert others <= {"methods.base", "methods.coop"}, f"coop.{module}: {sorted(others)}"


def test_no_function_is_longer_than_40_lines():
    functions = (
        (module, node)
        for module, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    )
    assert not [f"coop.{module}.{f.name}" for module, f in functions if f.end_lineno - f.lineno >= 40]


def test_a_method_can_be_read_at_a_glance():
    """At most 80 lines, docstrings included; the base and CoOp's prompt serve all others."""
    lines = {name: len(path.read_text().splitlines()) for name, path in MODULES.items() if name.startswith("methods.")}
    assert {name: count for name, count in lines.items() if count > 80}.keys() <= {"methods.base", "methods.coop"}
