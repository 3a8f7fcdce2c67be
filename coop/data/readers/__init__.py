"""Readers: one for each layout on disk, a function (data_root, *, ...) that gives `Splits`.

`data_root` is the folder that holds the data sets, None if the user gave none. `folders` and `image_folders` are
relative to it; the first that exists is taken: CoOp's layout, then torchvision's.
"""

from omegaconf import DictConfig

from coop.config import DATASET_KEYS, arguments, locate
from coop.data.sampling import Splits, sample
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


def read_splits(cfg: DictConfig) -> Splits:
    """The images of a run: sampled by the protocol, or as a manifest lists them.

    Raises:
        CoopError: missing or unreadable data, or a data set without training images.
    """
    from coop.data.counts import counts_by_label
    from coop.data.manifest import apply_manifest  # which reads rows as readers do

    whole = read_dataset(cfg.dataset, cfg.data_root)
    counts = cfg.dataset.get("counts")
    if cfg.dataset.manifest and counts:
        raise CoopError(f"dataset.manifest={cfg.dataset.manifest}: says which images; give one number of shots")
    if cfg.dataset.manifest:
        splits = apply_manifest(whole, cfg.dataset.manifest, shots=cfg.shots, classes=cfg.dataset.classes)
    else:
        shots = counts_by_label(counts, whole.classnames) if counts else cfg.shots
        splits = sample(whole, shots, cfg.seed, cfg.dataset.classes)
    if not splits.train and locate("method", cfg.method).learns:
        raise CoopError(
            f"dataset={cfg.dataset.name}: has no training images; train on another, then use it with coop.evaluate"
        )
    return splits
