"""Getting data sets: downloads that resume, and UCF101's middle frames. A local server stands in for the network."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torchvision
from PIL import Image
from torchvision.datasets import utils

from coop.data.tools import frames
from coop.data.tools.catalogue import PUBLISHED
from coop.data.tools.prepare import prepare, resume_download, resumed_downloads
from coop.errors import CoopError

CONTENT = bytes(range(256)) * 4096


class Server(ThreadingHTTPServer):
    """Serves CONTENT; may break off after some bytes, or know nothing of ranges."""

    breaks_after, ranges, seen = None, True, ()


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args) -> None:
        pass

    def do_GET(self) -> None:
        start = int(self.headers.get("Range", "bytes=0-")[6:-1]) if self.server.ranges else 0
        self.server.seen += ((self.command, start),)
        if start >= len(CONTENT):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(CONTENT[start:][: self.server.breaks_after])

    do_HEAD = do_GET


@pytest.fixture
def server():
    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def url(server: Server) -> str:
    return f"http://127.0.0.1:{server.server_port}/data.tar"


def gets(server: Server) -> list[int]:
    return [start for command, start in server.seen if command == "GET"]


def test_goes_on_where_it_stopped(server, tmp_path):
    server.breaks_after = 100_000
    with pytest.raises(OSError, match=r"connection ended after 100000 of 1048576 bytes"):
        resume_download(url(server), tmp_path / "x.tar")
    assert not (tmp_path / "x.tar").exists()
    server.breaks_after = None
    resume_download(url(server), tmp_path / "x.tar")
    assert gets(server) == [0, 100_000]
    assert (tmp_path / "x.tar").read_bytes() == CONTENT
    assert not (tmp_path / "x.tar.part").exists()


def test_starts_anew_if_the_server_can_not_resume(server, tmp_path):
    server.ranges = False
    (tmp_path / "x.tar.part").write_bytes(b"half")
    resume_download(url(server), tmp_path / "x.tar")
    assert (tmp_path / "x.tar").read_bytes() == CONTENT


def test_whole_part_is_only_renamed(server, tmp_path):
    (tmp_path / "x.tar.part").write_bytes(CONTENT)
    resume_download(url(server), tmp_path / "x.tar")
    assert (tmp_path / "x.tar").read_bytes() == CONTENT


def test_torchvision_resumes_and_checks_the_sum(server, tmp_path):
    (tmp_path / "data.tar.part").write_bytes(CONTENT[:5000])
    original = utils._urlretrieve
    with resumed_downloads():
        utils.download_url(url(server), str(tmp_path), md5=hashlib.md5(CONTENT).hexdigest())
        assert gets(server)[-1] == 5000
        (tmp_path / "data.tar").unlink()
        with pytest.raises(RuntimeError, match=r"corrupted"):
            utils.download_url(url(server), str(tmp_path), md5="0" * 32)
    assert utils._urlretrieve is original


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
