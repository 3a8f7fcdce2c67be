"""What search and retrieval are told; imports no torch."""

from dataclasses import dataclass
from typing import Annotated

from coop.system.validation import between

AT = (1, 5, 10)  # recall at


@dataclass
class EncoderOptions:
    """A run, or a backbone and its weights; and what they are at work with."""

    run: str | None = None
    backbone: str | None = None
    pretrained: str | None = None
    accelerator: str = "auto"
    num_workers: Annotated[int, between(0)] = 2
    config_dir: str | None = None


@dataclass
class SearchOptions(EncoderOptions):
    """The options of python -m coop.search."""

    like: str | None = None
    classname: str | None = None
    top: Annotated[int, between(1, 1000)] = 20
    out: str = "search_results"
    json: bool = False


@dataclass
class RetrieveOptions(EncoderOptions):
    """The options of python -m coop.retrieve."""

    captions: str = "???"
    images: str | None = None
    split: str = "test"
    image_column: str = "image"
    caption_column: str = "caption"
    out: str = "retrieval_results"
