"""What is in the cache says what it is."""

import pytest
import torch
from PIL import Image

from coop.cache import main as run
from coop.data.features import FeatureExtractor
from coop.data.sampling import Item


@pytest.fixture
def items(tmp_path) -> list[Item]:
    made = [Item(str(tmp_path / f"{index}.png"), 0, "thing") for index in range(3)]
    for index, item in enumerate(made):
        Image.new("RGB", (40, 40), (index * 50, 0, 0)).save(item.path)
    return made


def test_entries_name_their_backbone_data_set_and_part(small_clip, items, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    options = {"cached": True, "cache_dir": str(tmp_path / "cache"), "dataset": "caltech101"}
    extractor = FeatureExtractor(small_clip, torch.device("cpu"), 0, **options)
    extractor(items[:2], None, "test images")
    extractor(items, None, "training images")
    extractor(items, None, "validation images")
    assert run([f"cache_dir={tmp_path / 'cache'}"]) == 0
    out = capsys.readouterr().out
    # The validation images were all there already; nothing was kept for them.
    assert "small, caltech101 test images, caltech101 training images, 3 images x 64" in out
