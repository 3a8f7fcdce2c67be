"""A data set's validation images in the place of its test images: what a choice may be judged on."""

from dataclasses import replace

from coop.data.readers.split_file import read_split_file
from coop.data.sampling import Splits


def read_validation(data_root: str | None, *, image_folders: list[str], split_file: str) -> Splits:
    """`read_split_file` with its `val` as `test`, and no validation images. Raises CoopError as it does."""
    splits = read_split_file(data_root, image_folders=image_folders, split_file=split_file)
    return replace(splits, val=[], test=splits.val)
