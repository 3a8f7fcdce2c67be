"""Class names that come from open_clip's and timm's metadata, or from a list of the user's."""

import os
import runpy
from importlib.util import find_spec
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from coop.data.readers.split_file import PUBLISHED, load_rows, names_by_label
from coop.errors import CoopError


def imagenet_classnames() -> dict[str, str]:
    """Names of ImageNet's 1000 classes by wnid, in label order: open_clip's list, curated by CLIP's authors."""
    metadata = runpy.run_path(str(_package_folder("open_clip") / "zero_shot_metadata.py"))
    return dict(zip(imagenet_wnids(), metadata["IMAGENET_CLASSNAMES"], strict=True))


def imagenet_wnids(subset: str = "imagenet") -> list[str]:
    """The wnids of ImageNet-1k in label order, or the 200 of a subset: "imagenet-a" or "imagenet-r"."""
    file = _package_folder("timm") / "data/_info" / f"{subset.replace('-', '_')}_synsets.txt"
    return file.read_text(encoding="utf-8").split()


def _package_folder(package: str) -> Path:
    # Lists are read without importing the models beside them: that costs 80 MiB and seconds.
    return Path(next(iter(find_spec(package).submodule_search_locations)))


def read_classnames(path: str | os.PathLike) -> dict[str, str]:
    """Read a list of class names: one `folder name` a line, parted by a tab, or else by the first space.

    This is the form of CoOp's `classnames.txt` for ImageNet. With a tab, folders' names may hold spaces.

    Returns:
        Class names by folder, in the file's order.

    Raises:
        CoopError: the file is missing, a line has no name, or a folder stands there twice.
    """
    names: dict[str, str] = {}
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CoopError(f"{path}: can't read this list of class names (`folder name` lines, UTF-8): {error}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        folder, _, name = (part.strip() for part in line.strip().partition("\t" if "\t" in line else " "))
        if not name:
            raise CoopError(
                f"{path}, line {number}: {line!r} has no class name; expected `folder name` (a tab or a space between)"
            )
        if folder in names:
            raise CoopError(f"{path}, line {number}: the folder {folder!r} stands there twice; remove one of the lines")
        names[folder] = name
    if not names:
        raise CoopError(f"{path}: this list of class names is empty; expected one `folder name` a line")
    return names


def named_in_config(node: DictConfig) -> list[str] | None:
    """The names that a data set's config gives for folders or labels, in their sorted order; None if it gives none."""
    given = node.get("classnames")
    if not given:
        return None
    names = read_classnames(given) if isinstance(given, str) else OmegaConf.to_container(given, resolve=True)
    return [str(names[folder]) for folder in sorted(names, key=str)]


def packaged_names(node: DictConfig) -> list[str] | None:
    """The class names of a data set by label, from what comes with the packages; None where nothing does."""
    split = PUBLISHED / f"{node.get('split_file')}.gz"
    if split.is_file():
        return list(names_by_label(load_rows(split), split).values())
    if node._target_.startswith("coop.data.readers.imagenet."):
        names = imagenet_classnames()
        return [names[wnid] for wnid in imagenet_wnids(node.get("classes_of", "imagenet"))]
    return None
