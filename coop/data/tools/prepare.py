"""Getting a data set onto the disk: torchvision's downloads, and what can be built from files that are there."""

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torchvision

from coop.data.tools.catalogue import PUBLISHED
from coop.data.tools.frames import extract_middle_frames
from coop.errors import CoopError

log = logging.getLogger("coop")

ARCHIVES = (".zip", ".gz", ".tgz", ".tar")


def prepare(name: str, data_root: str) -> None:
    """Download or build one data set under `data_root`, in a layout that its reader takes.

    Called again after an interruption, it keeps the archives that are whole.
    """
    root = Path(data_root).expanduser()
    builders: dict[str, Callable[[Path], None]] = {"ucf101": extract_middle_frames, "imagenet": unpack_imagenet}
    published = PUBLISHED.get(name)
    if name in builders:
        builders[name](root)
    elif published and published.torchvision:
        download(name, published.torchvision, root)
    else:
        how = f": {published.how}" if published else ""
        raise CoopError(f"{name}: can't be downloaded or built automatically. To get it by hand{how}")


def download(name: str, torchvision_class: str, root: Path) -> None:
    """Download with torchvision, its checksums and its layout; what is unpacked appears under `root` all at once."""
    staging = root / f".prepare-{name}"
    try:
        staging.mkdir(parents=True, exist_ok=True)
        _drop_all_but_archives(staging)
        getattr(torchvision.datasets, torchvision_class)(str(staging), download=True)
    except ImportError as error:
        # Flowers102 reads its labels with scipy once all is unpacked; our split file has them already.
        log.info("%s: not needed here: %s", name, error)
    except (OSError, RuntimeError, EOFError) as error:
        raise CoopError(
            f"{name}: the download did not succeed ({error}). Run the same command again (whole archives are kept), or "
            f"get it by hand: {PUBLISHED[name].how}"
        ) from error
    _move_folders(staging, root)
    shutil.rmtree(staging)


def _drop_all_but_archives(staging: Path) -> None:
    """A half-unpacked archive looks complete to torchvision, so unpacking starts anew; downloads are kept."""
    for folder, _, files in os.walk(staging, topdown=False):
        for file in files:
            if not file.endswith(ARCHIVES):
                os.unlink(os.path.join(folder, file))
        if not os.listdir(folder):
            os.rmdir(folder)
    staging.mkdir(exist_ok=True)


def _move_folders(staging: Path, root: Path) -> None:
    folders = sorted(path for path in staging.iterdir() if path.is_dir())
    for folder in folders:
        if (root / folder.name).exists():
            raise CoopError(
                f"{root / folder.name}: is there already, but not complete. Move it away and run the same command "
                "again: what was downloaded is kept"
            )
    for folder in folders:
        for file in folder.iterdir():
            if file.is_file() and file.suffix in ARCHIVES:
                file.unlink()
        os.replace(folder, root / folder.name)


def unpack_imagenet(root: Path) -> None:
    """Unpack ImageNet's archives, which lie in `root`/imagenet, into train/WNID and val/WNID (torchvision, checked)."""
    folder = root / "imagenet"
    for split in ("val", "train"):
        try:
            torchvision.datasets.ImageNet(str(folder), split=split)
        except (RuntimeError, OSError) as error:
            raise CoopError(f"{folder}: {error} To get ImageNet: {PUBLISHED['imagenet'].how}") from error
        except ImportError:
            raise CoopError("unpacking ImageNet's archives needs scipy: pip install scipy") from None
