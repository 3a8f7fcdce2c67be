"""UCF101's middle frames from its videos (extra: pip install 'coop-clip[video]')."""

import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from coop.data.contact_sheet import encoded
from coop.data.readers.listing import shorten
from coop.data.readers.split_file import PUBLISHED, load_rows
from coop.errors import CoopError
from coop.system.files import write_atomically
from coop.system.progress import progress

SPLIT_FILE = "split_zhou_UCF101.json"
FRAMES = "ucf101/UCF-101-midframes"
JPEG_QUALITY = 95


def extract_middle_frames(root: Path) -> None:
    """Write the middle frame of each video under `root`/ucf101 to where the published split expects it.

    Frame N // 2 of the N that can be decoded. CoOp's authors offer their own frames, which may differ in a frame or in
    compression. Frames that are there already are kept.

    Raises:
        CoopError: videos are missing or unreadable, or PyAV is not installed.
    """
    rows = load_rows(PUBLISHED / f"{SPLIT_FILE}.gz")
    targets = [root / FRAMES / row[0] for part in rows.values() for row in part]
    targets = [target for target in targets if not target.exists()]
    videos = {path.stem: path for path in (root / "ucf101").rglob("*.avi")}
    if missing := [target.stem for target in targets if target.stem not in videos]:
        raise CoopError(
            f"{root / 'ucf101'}: {len(missing)} of the {len(targets)} videos that are needed are not there: "
            f"{shorten(missing)} (.avi). Unpack UCF101.rar (https://www.crcv.ucf.edu/data/UCF101.php) into this folder"
        )
    jobs = [(videos[target.stem], target) for target in targets]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        written = pool.map(write_middle_frame, jobs, chunksize=16)
        for _ in progress(written, total=len(jobs), desc="middle frames", unit="video"):
            pass


def write_middle_frame(job: tuple[Path, Path]) -> None:
    """Decode one video and write its middle frame as JPEG."""
    try:
        import av
    except ImportError:
        raise CoopError("reading videos needs PyAV: pip install 'coop-clip[video]'") from None
    video, target = job
    try:
        with av.open(str(video)) as container:
            frames = list(container.decode(video=0))
        image = frames[len(frames) // 2].to_image()
    except (av.FFmpegError, IndexError) as error:
        raise CoopError(f"{video}: not a readable video ({error}). Unpack it again") from None
    write_atomically(target, encoded(image, "JPEG", quality=JPEG_QUALITY))
