"""What run folders of earlier versions and of other machines write otherwise than today's here."""

import re
from pathlib import Path
from typing import Any

from coop.config import PACKAGE

# What comes with the package lies in each installation: of its path, this and what is behind it.
BUNDLED = re.compile(r"coop[/\\]assets[/\\]")
# Readers lay in coop.data itself.
READERS = {
    f"coop.data.{name}.": f"coop.data.readers.{name}."
    for name in ("aircraft", "folder", "generated", "huggingface", "imagenet", "mini", "sun397", "table")
} | {"coop.data.splits.": "coop.data.readers.split_file."}


def as_today(config: dict[str, Any]) -> dict[str, Any]:
    """The config of a run folder, already validated, with today's names for what has moved."""
    dataset, method = dict(config["dataset"]), dict(config["method"])
    module, _, function = dataset["_target_"].rpartition(".")
    dataset["_target_"] = READERS.get(f"{module}.", f"{module}.") + function
    if method["_target_"] == "coop.methods.tip_adapter.TipAdapter" and "template" in method:
        method["templates"] = [method.pop("template")]
    backbone = config["backbone"] | {"model": _bundled_here(config["backbone"]["model"])}
    return config | {"backbone": backbone, "dataset": dataset, "method": method}


def _bundled_here(model: str) -> str:
    """The bundled CLIP lies in each installation; a config that names another's means this one's."""
    name = BUNDLED.split(model)[-1]
    here = PACKAGE / "assets" / name
    bundled = name != model and here.is_dir() and not Path(model.removeprefix("local-dir:")).is_dir()
    return f"local-dir:{here}" if bundled else model
