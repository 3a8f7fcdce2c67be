"""Getting data sets: downloads by torchvision, and UCF101's middle frames."""

from pathlib import Path

import numpy as np
import pytest
import torchvision
from PIL import Image

from coop.data.tools import frames
from coop.data.tools.catalogue import PUBLISHED
from coop.data.tools.prepare import prepare
from coop.errors import CoopError


def layout(root: Path, fails: Exception | None = None) -> type:
    """A stand-in for a torchvision class: an archive is 'downloaded', then unpacked into dtd/dtd/images."""

    class Downloaded:
        calls = []

        def __init__(self, staging: str, download: bool):
            folder = Path(staging) / "dtd"
            self.calls.append(sorted(path.name for path in Path(staging).rglob("*") if path.is_file()))
            folder.mkdir(exist_ok=True)
            (folder / "dtd.tar.gz").write_bytes(b"archive")
            (folder / "dtd/images").mkdir(parents=True)
            (folder / "dtd/images/1.jpg").touch()
            if fails and len(self.calls) == 1:
                raise fails

    return Downloaded


def test_unpacked_folder_appears_whole(tmp_path, monkeypatch):
    fake = layout(tmp_path, fails=OSError("the line is dead"))
    monkeypatch.setattr(torchvision.datasets, "DTD", fake)
    with pytest.raises(CoopError, match=r"dtd: the download did not succeed \(the line is dead\)\. Run the same"):
        prepare("dtd", str(tmp_path))
    assert not (tmp_path / "dtd").exists()
    prepare("dtd", str(tmp_path))
    assert fake.calls == [[], ["dtd.tar.gz"]], "half-unpacked images are dropped, the archive is kept"
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == [
        "dtd",
        "dtd/dtd",
        "dtd/dtd/images",
        "dtd/dtd/images/1.jpg",
    ]


def test_what_is_there_is_not_overwritten(tmp_path, monkeypatch):
    monkeypatch.setattr(torchvision.datasets, "DTD", layout(tmp_path))
    (tmp_path / "dtd").mkdir()
    with pytest.raises(CoopError, match=r"is there already, but not complete. Move it away"):
        prepare("dtd", str(tmp_path))
    assert not list((tmp_path / "dtd").iterdir())


def test_missing_scipy_does_not_matter(tmp_path, monkeypatch):
    monkeypatch.setattr(torchvision.datasets, "Flowers102", layout(tmp_path, fails=ImportError("no scipy")))
    prepare("oxford_flowers", str(tmp_path))
    assert (tmp_path / "dtd/dtd/images/1.jpg").exists()


def test_every_named_class_of_torchvision_exists():
    for published in PUBLISHED.values():
        assert published.torchvision is None or hasattr(torchvision.datasets, published.torchvision)


@pytest.mark.parametrize("name", ["imagenet_a", "imagenetv2", "stanford_cars"])
def test_by_hand(tmp_path, name):
    with pytest.raises(
        CoopError, match=f"{name}: can't be downloaded or built automatically. .* by hand: .*DATA_ROOT/"
    ):
        prepare(name, str(tmp_path))
    with pytest.raises(CoopError, match=r"mini: can't be downloaded"):
        prepare("mini", str(tmp_path))


def test_imagenet_without_archives(tmp_path):
    (tmp_path / "imagenet").mkdir()
    with pytest.raises(CoopError, match=r"ILSVRC2012_devkit_t12\.tar\.gz.* is not present"):
        prepare("imagenet", str(tmp_path))


# UCF101

NAMES = ["Yo_Yo/v_YoYo_g01_c01.jpg", "Yo_Yo/v_YoYo_g02_c01.jpg"]
ROWS = {"train": [[NAMES[0], 0, "Yo_Yo"]], "val": [], "test": [[NAMES[1], 0, "Yo_Yo"]]}


@pytest.fixture
def two_videos(monkeypatch):
    monkeypatch.setattr(frames, "load_rows", lambda path: ROWS)


def write_video(path: Path, values: list[int]) -> None:
    av = pytest.importorskip("av")
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for value in values:
            frame = av.VideoFrame.from_image(Image.new("RGB", (64, 48), (value, value, value)))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def test_middle_frames(tmp_path, two_videos):
    videos = tmp_path / "ucf101/UCF-101/YoYo"
    write_video(videos / "v_YoYo_g01_c01.avi", [20] * 4 + [120] + [220] * 4)
    write_video(videos / "v_YoYo_g02_c01.avi", [20] * 3 + [180] + [90] * 2)
    done = tmp_path / "ucf101/UCF-101-midframes/Yo_Yo"
    prepare("ucf101", str(tmp_path))
    values = [np.asarray(Image.open(done / f"v_YoYo_g0{index}_c01.jpg"), float).mean() for index in (1, 2)]
    assert np.allclose(values, [120, 180], atol=12)
    stamp = (done / "v_YoYo_g01_c01.jpg").stat().st_mtime_ns
    (done / "v_YoYo_g02_c01.jpg").unlink()
    prepare("ucf101", str(tmp_path))
    assert (done / "v_YoYo_g02_c01.jpg").exists()
    assert (done / "v_YoYo_g01_c01.jpg").stat().st_mtime_ns == stamp, "frames that are there are kept"


def test_damaged_video_is_named(tmp_path, two_videos):
    videos = tmp_path / "ucf101/UCF-101/YoYo"
    write_video(videos / "v_YoYo_g01_c01.avi", [20] * 3)
    (videos / "v_YoYo_g02_c01.avi").write_bytes(b"not a video")
    with pytest.raises(CoopError, match=r"v_YoYo_g02_c01\.avi: not a readable video"):
        prepare("ucf101", str(tmp_path))


def test_absent_videos_are_counted(tmp_path, two_videos):
    with pytest.raises(CoopError, match=r"2 of the 2 videos that are needed are not there: v_YoYo_g01_c01, .*\.rar"):
        prepare("ucf101", str(tmp_path))
