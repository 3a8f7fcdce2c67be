"""One spelling (American, as that of the libraries), and the field's words, in code and documentation."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXTS = [
    *(path for room in ("coop", "conf", "benchmarks", "notebooks") for path in (ROOT / room).rglob("*")),
    *ROOT.glob("*.md"),
    *ROOT.glob("experiments/*/README.md"),
]
KINDS = {".py", ".md", ".yaml", ".ipynb", ".j2"}
BRITISH = (
    r"(normal|optim|initial|recogn|token|minim|maxim|summar|general)is(e|ing|ation)|colour|behaviour|neighbour|favour"
)
BRITISH += r"|licence|labelled|cancelled|\bcentred?\b|greyscale|learnt"
OTHERS = r"\btext side\b|\bimage side\b|hand-written prompt|\btaken up\b"


def test_no_other_words():
    for path in TEXTS:
        if path.suffix in KINDS and (path.is_file() and "checkpoints" not in path.name):
            found = re.search(f"{BRITISH}|{OTHERS}", path.read_text(), re.IGNORECASE)
            assert not found, f"{path.relative_to(ROOT)}: {found[0]}"
