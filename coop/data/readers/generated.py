"""Data sets whose published split is not to be had: the user's split file, else 50/20/30 per class by a fixed seed."""

from coop.data.readers.folder import class_images, split_each_class, to_items
from coop.data.readers.listing import Folders, find_folder
from coop.data.readers.split_file import load_rows, own_split_file, splits_from_rows
from coop.data.sampling import Splits


def read_split_or_generate(data_root: str | None, *, image_folders: Folders, split_file: str, seed: int) -> Splits:
    """Read class folders by the user's split file in CoOp's format; without one, split them 50/20/30.

    The generated split takes classes and images in sorted order and one generator, so it is the same on every machine
    that has the same files. It is not the paper's, and `origin` says "generated". Class names are the folders' names.

    Args:
        data_root: the folder that holds the data sets.
        image_folders: folders, relative to `data_root`, that may hold the class folders.
        split_file: name of the split file, in the data set's folder.
        seed: seed of the generated split. Figures are comparable only with the same one.

    Raises:
        CoopError: a folder or an image is missing, a class is empty, or the split file is not of this format.
    """
    images = find_folder(data_root, image_folders)
    own = own_split_file(data_root, images, split_file)
    if own.is_file():
        return splits_from_rows(load_rows(own), images, own, "own")
    listed = class_images(images)
    classnames = list(listed)
    parts = split_each_class(images, listed, seed)
    items = {part: to_items(by_class, classnames, classnames) for part, by_class in parts.items()}
    return Splits(**items, classnames=classnames, origin="generated")
