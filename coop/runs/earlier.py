"""What run folders of earlier versions write otherwise than today's."""

from typing import Any

# Readers lay in coop.data itself.
READERS = {
    f"coop.data.{name}.": f"coop.data.readers.{name}."
    for name in ("aircraft", "folder", "generated", "huggingface", "imagenet", "mini", "sun397", "table")
} | {"coop.data.splits.": "coop.data.readers.split_file."}


def as_today(config: dict[str, Any]) -> dict[str, Any]:
    """The config of a run folder, with today's names for what has moved.

    Args:
        config: with a `dataset` and a `method` that have a `_target_`.
    """
    dataset, method = dict(config["dataset"]), dict(config["method"])
    module, _, function = dataset["_target_"].rpartition(".")
    dataset["_target_"] = READERS.get(f"{module}.", f"{module}.") + function
    if method["_target_"] == "coop.methods.tip_adapter.TipAdapter" and "template" in method:
        method["templates"] = [method.pop("template")]
    return config | {"dataset": dataset, "method": method}
