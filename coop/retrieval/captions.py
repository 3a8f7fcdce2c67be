"""Images with their captions: Karpathy's JSON of Flickr30k and COCO, a CSV file, a Hugging Face data set."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel

from coop.data.readers.huggingface import image_paths, load
from coop.data.readers.listing import shorten
from coop.data.readers.table import open_csv
from coop.errors import CoopError
from coop.retrieval.options import RetrieveOptions
from coop.system.validation import read_json


class Captions(NamedTuple):
    """Captions of images, several of each or one."""

    images: list[str]  # paths, each once
    texts: list[str]
    owners: list[int]  # of each caption, the index of its image
    dataset: str | None = None  # as Karpathy's file calls it: "coco", "flickr30k"


Captioned = list[tuple[str, list[str]]]  # path and captions


class _Sentence(BaseModel):
    raw: str


class _Image(BaseModel):
    filename: str
    filepath: str = ""  # of COCO: val2014
    split: str
    sentences: list[_Sentence]


class _Karpathy(BaseModel):
    images: list[_Image]
    dataset: str | None = None


def read_captions(options: RetrieveOptions) -> Captions:
    """Read the captions that `captions=` names, of the images of `split=`.

    Raises:
        CoopError: the file cannot be read, holds nothing of this split, an image has no caption, or a caption no image.
    """
    source, columns = Path(options.captions).expanduser(), (options.image_column, options.caption_column)
    folder, dataset = Path(options.images or source.parent).expanduser(), None
    try:
        if source.is_dir():
            captioned = _of_dataset(source, options.split, *columns)
        elif source.suffix == ".json":
            captioned, dataset = _of_karpathy(source, folder, options.split)
        else:
            captioned = _of_table(source, folder, options.split, *columns)
        _check(captioned, folder)
    except CoopError as error:
        raise CoopError(f"captions={source}: {error}") from None
    owners = [index for index, (_, texts) in enumerate(captioned) for _ in texts]
    return Captions([path for path, _ in captioned], [t for _, texts in captioned for t in texts], owners, dataset)


def _check(captioned: Captioned, folder: Path) -> None:
    if bare := [path for path, texts in captioned if not texts or not all(text.strip() for text in texts)]:
        raise CoopError(f"{len(bare)} images have no caption, or an empty one: {shorten(bare)}. Take them out")
    if missing := [path for path, _ in captioned if not os.path.isfile(path)]:
        raise CoopError(
            f"{len(missing)} of its {len(captioned)} images are not there: {shorten(missing)}. Give images=DIR, the "
            f"folder that their names start from (now {folder}), or take their captions out"
        )


def _of_karpathy(source: Path, folder: Path, split: str) -> tuple[Captioned, str | None]:
    content = read_json(source, _Karpathy, "not Karpathy's form", "Expected dataset_coco.json, dataset_flickr30k.json")
    chosen = [image for image in content.images if image.split == split]
    if not chosen:
        found = ", ".join(sorted({image.split for image in content.images})) or "no images"
        raise CoopError(f"has no images of split={split}; there are {found}")
    # COCO's archives unpack into folders of their own, which not everybody keeps.
    nested = (folder / chosen[0].filepath / chosen[0].filename).is_file()
    paths = [str(folder / (image.filepath if nested else "") / image.filename) for image in chosen]
    texts = [[sentence.raw for sentence in image.sentences] for image in chosen]
    return list(zip(paths, texts, strict=True)), content.dataset


def _of_table(source: Path, folder: Path, split: str, image_column: str, caption_column: str) -> Captioned:
    by_image: dict[str, list[str]] = {}
    with open_csv(source, "") as reader:
        _check_columns(reader.fieldnames, image_column, caption_column)
        for row in reader:
            if row.get("split", split) == split:
                by_image.setdefault(str(folder / (row[image_column] or "")), []).append(row[caption_column] or "")
    if not by_image:
        raise CoopError(f"no rows of split={split} below the header line")
    return list(by_image.items())


def _of_dataset(source: Path, split: str, image_column: str, caption_column: str) -> Captioned:
    parts = load(source)
    part = next(iter(parts.values())) if len(parts) == 1 else parts.get(split)
    if part is None:
        raise CoopError(f"has no split={split}; there are {', '.join(parts)}")
    _check_columns(part.features, image_column, caption_column)
    if (kind := type(part.features[image_column]).__name__) != "Image":
        raise CoopError(f"the column {image_column!r} holds no images but {kind}; give image_column=")
    several = (texts if isinstance(texts, list) else [texts] for texts in part[caption_column])
    texts = [[str(text or "") for text in captions] for captions in several]
    return list(zip(image_paths(part, image_column), texts, strict=True))


def _check_columns(there: Iterable[str], *wanted: str) -> None:
    if missing := [name for name in wanted if name not in there]:
        found = ", ".join(there) or "no header line"
        raise CoopError(f"has no column {missing[0]!r} but {found}; give image_column= and caption_column=")
