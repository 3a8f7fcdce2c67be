"""Whatever an image file holds becomes 8-bit RGB; what can't be read is named."""

import os

import numpy as np
import pytest
from PIL import Image

from coop.data.images import open_image
from coop.errors import CoopError

RED, GREEN = (200, 30, 40), (10, 180, 60)


@pytest.fixture
def picture() -> Image.Image:
    image = Image.new("RGB", (40, 24), RED)
    image.paste(GREEN, (20, 0, 40, 24))
    return image


def corners(image: Image.Image) -> tuple:
    assert image.mode == "RGB"
    return image.getpixel((2, 2)), image.getpixel((37, 21))


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "webp", "ppm"])
def test_lossless_formats(tmp_path, picture, suffix):
    path = tmp_path / f"x.{suffix}"
    picture.save(path, **({"lossless": True} if suffix == "webp" else {}))
    assert corners(open_image(str(path))) == (RED, GREEN)


def test_jpeg(tmp_path, picture):
    picture.save(tmp_path / "x.jpg", quality=95)
    assert np.allclose(corners(open_image(str(tmp_path / "x.jpg"))), (RED, GREEN), atol=4)


def test_cmyk(tmp_path, picture):
    picture.convert("CMYK").save(tmp_path / "x.jpg", quality=98, subsampling=0)
    assert Image.open(tmp_path / "x.jpg").mode == "CMYK"
    assert np.allclose(corners(open_image(str(tmp_path / "x.jpg"))), (RED, GREEN), atol=6)


def test_palette(tmp_path, picture):
    picture.quantize(2).save(tmp_path / "x.png")
    assert Image.open(tmp_path / "x.png").mode == "P"
    assert corners(open_image(str(tmp_path / "x.png"))) == (RED, GREEN)


def test_palette_with_transparency_keeps_its_colors_without_a_warning(tmp_path, picture, recwarn):
    picture.quantize(2).save(tmp_path / "x.png", transparency=b"\x00\x80")
    assert corners(open_image(str(tmp_path / "x.png"))) == (RED, GREEN)
    assert not recwarn.list


def test_transparency_is_dropped(tmp_path, picture):
    picture.putalpha(0)
    picture.save(tmp_path / "x.png")
    assert corners(open_image(str(tmp_path / "x.png"))) == (RED, GREEN)


@pytest.mark.parametrize("mode", ["L", "LA", "1"])
def test_grayscale(tmp_path, mode):
    Image.new(mode, (8, 8), 255 if mode == "1" else 130 if mode == "L" else (130, 99)).save(tmp_path / "x.png")
    value = 255 if mode == "1" else 130
    assert open_image(str(tmp_path / "x.png")).getpixel((3, 3)) == (value,) * 3


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bit_grayscale_is_scaled_not_clipped(tmp_path, suffix):
    values = np.array([[0, 257, 32768, 65535]] * 4, dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / f"x.{suffix}")
    assert Image.open(tmp_path / f"x.{suffix}").mode.startswith("I")
    image = open_image(str(tmp_path / f"x.{suffix}"))
    assert [image.getpixel((x, 0)) for x in range(4)] == [(0,) * 3, (1,) * 3, (128,) * 3, (255,) * 3]


def test_pixels_without_a_known_range_are_refused(tmp_path):
    Image.fromarray(np.full((4, 4), 0.5, dtype=np.float32)).save(tmp_path / "x.tiff")
    with pytest.raises(CoopError, match=r"x\.tiff.*mode F.*8 or 16 bits"):
        open_image(str(tmp_path / "x.tiff"))


def test_exif_orientation_is_not_applied(tmp_path, picture):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    picture.save(tmp_path / "x.png", exif=exif)
    image = open_image(str(tmp_path / "x.png"))
    assert image.size == (40, 24)
    assert corners(image) == (RED, GREEN)


def test_preprocess_gets_the_rgb_image(tmp_path, picture):
    picture.quantize(2).save(tmp_path / "x.png")
    image = open_image(str(tmp_path / "x.png"), preprocess=lambda image: image.resize((image.width * 2, 5)))
    assert (image.mode, image.size) == ("RGB", (80, 5))


def test_strange_names(tmp_path, picture):
    path = tmp_path / "größe 'quoted' \"name\" 写真.png"
    picture.save(path)
    assert corners(open_image(str(path))) == (RED, GREEN)


def test_symlink(tmp_path, picture):
    picture.save(tmp_path / "x.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "x.png")
    assert corners(open_image(str(tmp_path / "link.png"))) == (RED, GREEN)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("kept", [0.5, 0.97])
def test_truncated(tmp_path, suffix, kept):
    noise = Image.fromarray(np.random.RandomState(0).randint(0, 255, (64, 64, 3), dtype=np.uint8))
    path = tmp_path / f"x.{suffix}"
    noise.save(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    with pytest.raises(CoopError, match=rf"x\.{suffix}: not a readable image .*copy or download it again"):
        open_image(str(path))


@pytest.mark.parametrize(
    "content", [b"", b"not an image at all", b"\xff\xd8\xff\xe0" + b"\0" * 50, b"\x89PNG\r\n\x1a\n" + b"x" * 99]
)
def test_corrupt(tmp_path, content):
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(CoopError, match=r"x\.jpg: not a readable image"):
        open_image(str(tmp_path / "x.jpg"))


def test_missing(tmp_path):
    with pytest.raises(CoopError, match=r"x\.jpg: the image file does not exist"):
        open_image(str(tmp_path / "x.jpg"))
    (tmp_path / "link.jpg").symlink_to(tmp_path / "x.jpg")
    with pytest.raises(CoopError, match=r"link\.jpg: the image file is a link to a file that does not exist"):
        open_image(str(tmp_path / "link.jpg"))
    with pytest.raises(CoopError, match=r"not a readable image"):
        open_image(str(tmp_path))


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="the superuser may read everything")
def test_no_permission(tmp_path, picture):
    picture.save(tmp_path / "x.png")
    (tmp_path / "x.png").chmod(0)
    with pytest.raises(CoopError, match=r"no permission to read"):
        open_image(str(tmp_path / "x.png"))


def test_pipes_and_names_of_other_encodings(tmp_path, picture):
    os.mkfifo(tmp_path / "x.jpg")
    with pytest.raises(CoopError, match=r"x\.jpg: not a readable image: a folder, a pipe or a device"):
        open_image(str(tmp_path / "x.jpg"))
    name = os.fsdecode(os.fsencode(tmp_path) + b"/\xe9.png")
    picture.save(name)
    assert corners(open_image(name)) == (RED, GREEN)
    with pytest.raises(CoopError, match=r"/\\xff\.png: the image file does not exist"):
        open_image(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png"))
