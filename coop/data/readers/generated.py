"""Data sets whose published split is not to be had: the user's split file, else 50/20/30 per class by a fixed seed."""

from coop.data.readers.folder import class_images, splits_of_classes
from coop.data.readers.listing import Folders, find_folder
from coop.data.readers.split_file import own_split_file, own_splits
from coop.data.sampling import Splits


def read_split_or_generate(data_root: str | None, *, image_folders: Folders, split_file: str, seed: int) -> Splits:
    """Read class folders by the user's split file in CoOp's format; without one, split them 50/20/30.

    The generated split takes classes and images in sorted order and one generator, so it is the same on every machine
    that has the same files. It is not the paper's, and `origin` says "generated". Figures are comparable only with the
    same `seed`. Class names are the folders' names.

    Raises:
        CoopError: a folder or an image is missing, a class is empty, or the split file is not of this format.
    """
    images = find_folder(data_root, image_folders)
    own = own_splits(own_split_file(data_root, images, split_file), images)
    return own or splits_of_classes(images, {"all": class_images(images)}, seed)
