"""Readers: one for each layout on disk, a function (data_root, *, ...) that gives `Splits`."""

from omegaconf import DictConfig

from coop.config import DATASET_KEYS, arguments, locate
from coop.data.sampling import Splits
from coop.errors import CoopError


def read_dataset(node: DictConfig, data_root: str | None):
    """The splits of the data set that a (checked) node describes.

    Raises:
        CoopError: missing, malformed or unreadable data, classes that share a name, or a function that is no reader.
    """
    from coop.data.readers.classes import check_names  # which names this package's own modules

    splits = locate("dataset", node)(data_root, **arguments(node, DATASET_KEYS))
    if not isinstance(splits, Splits):
        raise CoopError(
            f"dataset._target_={node._target_}: returned {type(splits).__name__}, expected coop.data.Splits"
        )
    check_names(splits, node.name)
    return splits
