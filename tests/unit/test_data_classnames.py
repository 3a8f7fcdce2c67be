"""Class names and templates from the metadata of open_clip and timm."""

import pytest

from coop.clip.templates import clip_templates
from coop.data.readers.classnames import imagenet_classnames, imagenet_wnids, read_classnames
from coop.errors import CoopError


def test_imagenet():
    names = imagenet_classnames()
    assert list(names) == imagenet_wnids() == sorted(imagenet_wnids())
    assert len(names) == 1000
    assert (names["n01440764"], names["n02012849"], names["n15075141"]) == ("tench", "crane bird", "toilet paper")


@pytest.mark.parametrize(
    ("subset", "first", "last"), [("imagenet-a", "n01498041", "n12267677"), ("imagenet-r", "n01443537", "n12267677")]
)
def test_subsets(subset, first, last):
    wnids = imagenet_wnids(subset)
    assert len(wnids) == len(set(wnids)) == 200
    assert wnids == sorted(wnids)
    assert (wnids[0], wnids[-1]) == (first, last)
    assert set(wnids) < set(imagenet_wnids())


@pytest.mark.parametrize(("which", "count"), [(80, 80), (7, 7)])
def test_templates(which, count):
    templates = clip_templates(which)
    assert len(set(templates)) == count
    assert all(template.count("{}") == 1 for template in templates)
    assert "itap of a {}." in templates
    assert set(clip_templates(7)) <= set(clip_templates(80))


def test_unknown_templates():
    with pytest.raises(CoopError, match=r"templates=8: CLIP's lists have 80 or 7 templates"):
        clip_templates(8)


def test_list_in_coops_form(tmp_path):
    (tmp_path / "classnames.txt").write_text('\ufeffn01 great white shark\n\nn02\tKäfer "x" / y\n', encoding="utf-8")
    assert read_classnames(tmp_path / "classnames.txt") == {"n01": "great white shark", "n02": 'Käfer "x" / y'}
