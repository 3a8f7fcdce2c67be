"""Support sets as others publish them, file by file: the images of the few shots; test images are the data set's own.

- cross-modal adaptation (Lin et al., CVPR 2023), `indices/DATASET/shot_16-seed_1.json`: {"train": {"data": [{"impath",
  "label", "classname"}, ...]}, "val": {"data": [...]}}.
- 2SFS (Farina et al., CVPR 2025), JSON lines, a training image in each: the same keys, or [image path, label, class
  name]. Its files could not be read when this was written; the names of keys are presumed, and others of ROW are read.
"""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, model_validator

from coop.data.readers.listing import shorten
from coop.data.sampling import Item, Splits, sample
from coop.errors import CoopError
from coop.system.validation import NOT_EMPTY, parse_json

LINES = (".jsonl", ".jsonlines", ".ndjson")
FORM = (
    'Expected lines of {"impath": ..., "label": ..., "classname": ...}, or {"train": {"data": [such rows]}, '
    '"val": {"data": [...]}}'
)


class Row(BaseModel):
    """One image."""

    model_config = ConfigDict(strict=True)
    impath: Annotated[str, NOT_EMPTY] = Field(
        validation_alias=AliasChoices("impath", "image_path", "img_path", "path", "image", "file_name")
    )
    label: int = Field(validation_alias=AliasChoices("label", "target", "class_id"))

    @model_validator(mode="before")
    @classmethod
    def _from_list(cls, value: Any) -> Any:
        return dict(zip(("impath", "label"), value, strict=False)) if isinstance(value, list) else value


class Part(BaseModel):
    data: list[Row]


class Indices(BaseModel):
    """A file of cross-modal adaptation."""

    train: Part
    val: Part = Part(data=[])


def is_support(path: str) -> bool:
    """Whether a file lists a support set in one of these forms; otherwise it may be a manifest."""
    file = Path(path).expanduser()
    if file.suffix.lower() in LINES:
        return True
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and "format" not in content and isinstance(content.get("train"), dict)


def load_support(path: str) -> Indices:
    """Read such a file; raises CoopError, which names the line or the key, where it is none."""
    where, file = f"dataset.manifest={path}", Path(path).expanduser()
    try:
        content = file.read_bytes()
    except OSError as error:
        raise CoopError(f"{where}: cannot be read ({error.strerror}). {FORM}") from None
    if file.suffix.lower() not in LINES:
        return parse_json(content, Indices, where, FORM)
    lines = [(number, line) for number, line in enumerate(content.splitlines(), 1) if line.strip()]
    rows = [parse_json(line, Row, f"{where}, line {number}", FORM) for number, line in lines]
    if not rows:
        raise CoopError(f"{where}: lists no image. {FORM}")
    return Indices(train=Part(data=rows))


def apply_support(whole: Splits, known: dict[str, Item], path: str, *, shots: int, classes: str) -> Splits:
    """Train and validate on exactly the images that a file lists, in its order; test on the data set's own.

    Args:
        whole: the data set as its reader gives it, whose labels and class names stay.
        known: its images by their paths from its folder.
        path: of the file.
        shots: the run's, which has to be the file's.
        classes: "all", "base" or "new".

    Raises:
        CoopError: images that the data set lacks, that it tests on, or that stand there twice; labels that do not fit
            its classes; another number of shots.
    """
    listed = load_support(path)
    parts = {"train": listed.train.data, "val": listed.val.data}
    rows = [row for part in parts.values() for row in part]
    items = {row.impath: item for row in rows if (item := _find(row.impath, known))}
    if missing := [row.impath for row in rows if row.impath not in items]:
        raise CoopError(
            f"{path}: {len(missing)} of its {len(rows)} images are not in this data set: {shorten(missing)}"
        )
    _check_rows(path, rows, items, whole)
    most = max(Counter(row.label for row in listed.train.data).values(), default=0)
    if shots != most:
        raise CoopError(f"{path}: has {most} training images of a class, not shots={shots}; set shots={most}")
    found = {part: [items[row.impath] for row in of_part] for part, of_part in parts.items()}
    return sample(replace(whole, **found), -1, 0, classes)


def _find(listed: str, known: dict[str, Item]) -> Item | None:
    """The image that a path of somebody else's machine means: by the longest end of it that is one here."""
    parts = Path(listed.replace("\\", "/")).parts
    return next((item for n in range(len(parts)) if (item := known.get("/".join(parts[n:])))), None)


def _check_rows(path: str, rows: list[Row], items: dict[str, Item], whole: Splits) -> None:
    tested = {item.path for item in whole.test}
    if leaked := [row.impath for row in rows if items[row.impath].path in tested]:
        raise CoopError(f"{path}: {len(leaked)} of its images are test images of this data set: {shorten(leaked)}")
    counts = Counter(items[row.impath].path for row in rows)
    if repeated := [image for image, count in counts.items() if count > 1]:
        raise CoopError(f"{path}: images that stand there more than once: {shorten(repeated)}")
    theirs: dict[int, int] = {}
    for row in rows:
        own = items[row.impath].label
        if theirs.setdefault(row.label, own) != own:
            raise CoopError(
                f"{path}: gives {row.impath} the label {row.label}, as images of "
                f"{whole.classnames[theirs[row.label]]!r}; in this data set it is {whole.classnames[own]!r}"
            )
    if len(set(theirs.values())) != len(theirs):
        raise CoopError(f"{path}: has several labels for one class of this data set; use the data set it was made for")
