"""Search: features of photographs that are kept, queries made of words and photographs, classes of runs, the page."""

import json
import os
import re
import shutil
from pathlib import Path
from urllib.parse import unquote_to_bytes

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from coop import CoopError, FrozenCLIP, PromptLearner
from coop.data.contact_sheet import contact_sheet
from coop.data.features import FeatureExtractor
from coop.evaluation.images import predict_images
from coop.methods.cocoop import CoCoOp
from coop.methods.linear_probe import LinearProbe
from coop.methods.maple import MaPLe
from coop.methods.plot import PLOT
from coop.methods.taskres import TaskRes
from coop.methods.zero_shot import ZeroShot
from coop.retrieval import encoding
from coop.retrieval.encoding import Encoder, check_context, encode_photographs, encode_texts, shorten
from coop.retrieval.options import EncoderOptions
from coop.retrieval.page import write_page
from coop.retrieval.ranking import best_photographs, label_of, log_probabilities, query_feature


def photograph(path, seed: int) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.RandomState(seed).randint(0, 256, (40, 50, 3), dtype=np.uint8)).save(path)
    return str(path)


@pytest.fixture
def paths(tmp_path) -> list[str]:
    return [photograph(tmp_path / "photos" / f"{seed}.png", seed) for seed in range(12)]


@pytest.fixture
def encoder(small_clip, tmp_path, monkeypatch) -> Encoder:
    monkeypatch.setenv("COOP_CACHE", str(tmp_path / "cache"))
    return Encoder(small_clip, FeatureExtractor(small_clip, torch.device("cpu"), 0, cached=True))


@pytest.fixture
def seen(monkeypatch) -> list[str]:
    """Names of the images that are opened to be encoded."""
    from coop.data import features

    opened, own = [], features.open_image
    monkeypatch.setattr(features, "open_image", lambda path, *a: opened.append(os.path.basename(path)) or own(path, *a))
    return opened


def test_only_new_and_changed_photographs_are_encoded_and_removed_ones_forgotten(encoder, paths, seen, tmp_path):
    before = encode_photographs(encoder.photographs, paths)
    assert before.new == 12 and sorted(seen) == sorted(map(os.path.basename, paths))
    seen.clear()
    photograph(tmp_path / "photos" / "0.png", 99)
    os.utime(paths[0], (1, 1))  # changed within the clock's step
    os.remove(paths[1])
    now = [paths[0], *paths[2:], photograph(tmp_path / "photos" / "new.png", 100)]
    after = encode_photographs(encoder.photographs, now)
    assert sorted(seen) == ["0.png", "new.png"] and after.new == 2
    assert after.paths == now and after.left_out == {}
    assert torch.equal(after.features[1:-1], before.features[2:])
    assert not torch.allclose(after.features[0], before.features[0], atol=1e-3)


def test_another_backbone_is_never_mixed_in(encoder, paths, seen, tiny_clip):
    encode_photographs(encoder.photographs, paths)
    seen.clear()
    other = FeatureExtractor(tiny_clip, torch.device("cpu"), 0, cached=True)
    there = encode_photographs(other, paths[:2])
    assert len(seen) == there.new == 2 and there.features.shape == (2, tiny_clip.embed_dim)
    assert encode_photographs(encoder.photographs, paths).new == 0


def test_what_was_encoded_before_a_kill_is_not_encoded_again(encoder, paths, seen, monkeypatch):
    own, calls = FrozenCLIP.encode_image, []

    def killed(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return own(self, *args, **kwargs)

    monkeypatch.setattr(FrozenCLIP, "encode_image", killed)
    with pytest.raises(KeyboardInterrupt):
        encode_photographs(encoder.photographs, paths)
    seen.clear()
    assert encode_photographs(encoder.photographs, paths).new == len(seen) == 4  # batches of eight


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_photographs_are_named_and_left_out(encoder, paths, tmp_path, workers):
    (tmp_path / "photos" / "cut.png").write_bytes(Path(paths[0]).read_bytes()[:500])
    os.mkfifo(tmp_path / "photos" / "pipe.jpg")
    broken = [str(tmp_path / "photos" / name) for name in ("cut.png", "pipe.jpg")]
    encoder.photographs.num_workers = workers
    for new in (12, 0):  # they are tried again, and nothing else is
        found = encode_photographs(encoder.photographs, [broken[0], *paths, broken[1]])
        assert found.paths == paths and found.features.isfinite().all() and found.new == new
        assert list(found.left_out) == broken
        assert "cut.png: not a readable image" in found.left_out[broken[0]] and "a pipe" in found.left_out[broken[1]]
    with pytest.raises(CoopError, match=r"cut\.png: not a readable image"):
        query_feature(encoder, [], broken[0])


def test_a_query_is_the_mean_of_its_parts(encoder, paths, small_clip):
    texts, (image,) = (
        small_clip.encode_text(["a dog", "snow"]),
        encode_photographs(encoder.photographs, paths[:1]).features,
    )
    for words, like, parts in ((["a dog"], None, [texts[0]]), (["a dog", "snow"], paths[0], [*texts, image])):
        query = query_feature(encoder, words, like)
        mean = torch.stack(parts).mean(dim=0)
        assert torch.allclose(query, mean / mean.norm(), atol=1e-6)
    everything = encode_photographs(encoder.photographs, paths).features
    scores, rows = best_photographs(encoder, everything, query, top=5)
    order = sorted(range(12), key=lambda row: -float(everything[row] @ query))
    assert rows.tolist() == order[:5] and scores.tolist() == pytest.approx(
        [float(everything[r] @ query) for r in order[:5]]
    )
    assert best_photographs(encoder, everything, everything[7], top=100)[1][0] == 7
    with pytest.raises(CoopError, match=r"longer than the text encoder takes \(77 tokens\)"):
        query_feature(encoder, ["red " * 100], None)


def test_a_class_ranks_by_its_probability(small_clip, paths, encoder):
    method = ZeroShot(small_clip, ["cat", "grand_piano", "dog"], template="a {}")
    features = encode_photographs(encoder.photographs, paths).features
    label = label_of(method, "grand_piano")
    assert label == label_of(method, "grand piano") == 1
    probabilities = method.logits(features).softmax(dim=1)
    scores, rows = best_photographs(encoder._replace(method=method), features, label, top=3)
    assert torch.allclose(scores.float(), probabilities[:, 1].topk(3).values, atol=1e-5)
    assert rows.tolist() == probabilities[:, 1].topk(3).indices.tolist()
    with pytest.raises(
        CoopError, match="classname=grand paino: not one of the 3 classes of this run, which has grand piano"
    ):
        label_of(method, "grand paino")


@pytest.mark.parametrize("kind", [MaPLe, PLOT, CoCoOp])
def test_photographs_are_seen_as_the_method_sees_them(small_clip, paths, tmp_path, monkeypatch, kind):
    """With prompts in the image tower, with local features, with texts that depend on the image."""
    method = kind(small_clip, ["cat", "dog", "car"], n_ctx=2, **({"depth": 2} if kind is MaPLe else {})).eval()
    node = OmegaConf.create({"method": {}, "trainer": {"precision": "32"}})
    (tmp_path / "prompt.safetensors").touch()
    monkeypatch.setattr(encoding, "load_trained", lambda *_, **__: (method, node, None))
    monkeypatch.setenv("COOP_CACHE", str(tmp_path / "cache"))
    encoder = encoding.load_encoder(EncoderOptions(run=str(tmp_path), num_workers=0))
    for new in (12, 12 * method.needs_images):  # what a method's own tower makes is not kept
        photographs = encode_photographs(encoder.photographs, paths)
        assert photographs.new == new
    scores, rows = best_photographs(encoder, photographs.features, 1, top=12)
    predicted = predict_images(method, paths, top=3)
    expected = [next(c["probability"] for c in predicted[row]["classes"] if c["classname"] == "dog") for row in rows]
    assert scores.tolist() == pytest.approx(expected, abs=1e-5) and expected == sorted(expected, reverse=True)


def test_near_certainties_are_told_apart(small_clip, encoder):
    class Certain(ZeroShot):
        def logits(self, image_features):
            return image_features

    logits = torch.tensor([[30.0, 0], [40.0, 0], [20.0, 0]])
    assert logits.softmax(dim=1)[:, 0].unique().numel() == 1
    method = Certain(small_clip, ["a", "b"], template="{}")
    assert log_probabilities(encoder._replace(method=method), logits, 0)[:, 0].argsort(descending=True).tolist() == [
        1,
        0,
        2,
    ]


def test_texts_behind_a_learned_context(small_clip, encoder):
    """As a method made for these texts encodes them; long ones lose their last words, and are counted."""
    node = OmegaConf.create({"_target_": "coop.methods.coop.PromptLearner", "n_ctx": 4})
    learner = PromptLearner(small_clip, ["cat", "dog"], n_ctx=4)
    learned = encoder._replace(method=learner, config=node)
    texts = ["A grey cat asleep.", "red " * 100]
    features, cut = encode_texts(learned, texts)
    expected = PromptLearner(small_clip, ["A grey cat asleep", ("red " * 70).strip()], n_ctx=4)
    expected.load_state_dict(learner.state_dict())
    assert cut == 1 and torch.allclose(features, expected().detach(), atol=1e-5)
    plain, cut = encode_texts(encoder, texts)
    assert cut == 1 and torch.allclose(plain[0], small_clip.encode_text(texts[:1])[0], atol=1e-6)
    assert torch.allclose(small_clip.encode_text(["red " * 75])[0], plain[1], atol=1e-6)
    assert shorten(small_clip, "one two three", 4) == "one two" and shorten(small_clip, "x" * 300, 9) == "x" * 18


def test_contexts_that_no_other_words_can_stand_behind(small_clip):
    names = ["cat", "dog"]
    check_context(PromptLearner(small_clip, names, n_ctx=4))
    for method in (
        PromptLearner(small_clip, names, n_ctx=4, class_specific=True),
        CoCoOp(small_clip, names, n_ctx=4),
        PLOT(small_clip, names, n_ctx=4),
        MaPLe(small_clip, names, n_ctx=2, depth=2),
        TaskRes(small_clip, names, templates=["a {}"]),
        LinearProbe(small_clip, names),
    ):
        with pytest.raises(
            CoopError, match=f"{type(method).__name__}.* has no context that other words can stand behind"
        ):
            check_context(method)


def test_the_page_escapes_and_links(tmp_path, paths):
    odd = photograph(tmp_path / "photos" / "<b> ü & 100%.png", 3)
    latin = os.fsdecode(os.fsencode(tmp_path) + b"/\xe9.png")
    shutil.copy(paths[0], latin)
    hits = [{"path": p, "score": 0.25, "predicted": {"classname": "<i>cat", "probability": 0.5}} for p in (odd, latin)]
    hits.append({"path": str(tmp_path / "gone.png"), "score": 0.125})
    found = {
        "query": "<script>x</script>",
        "summary": "3 photographs",
        "score": "cosine",
        "photographs": 3,
        "new": 1,
        "run": None,
        "backbone": "tiny",
    }
    page = write_page(tmp_path / "out", found | {"hits": hits, "left_out": {"z.jpg": "z.jpg: <broken>"}})
    text = page.read_text()
    assert "<script>" not in text and "&lt;script&gt;x&lt;/script&gt;" in text and "&lt;broken&gt;" in text
    assert "0.250  &lt;i&gt;cat 50 %" in text and "0.125" in text
    links = re.findall('href="file://([^"]*)"', text)
    assert [unquote_to_bytes(link) for link in links] == [os.fsencode(hit["path"]) for hit in hits]
    written = json.loads((tmp_path / "out" / "hits.json").read_text())
    assert [hit["path"] for hit in written["hits"]] == [odd, f"{tmp_path}/\\xe9.png", f"{tmp_path}/gone.png"]
    assert Image.open(tmp_path / "out" / "contact_sheet.png").width == 5 * 166 + 6


def test_the_contact_sheet_puts_the_best_first():
    colors = [(200, 0, 0), (0, 200, 0), (0, 0, 200), (90, 90, 0), (0, 90, 90), (90, 0, 90)]
    sheet = contact_sheet("x", [Image.new("RGB", (160, 160), color) for color in colors], ["0.1"] * 6)
    middles = [(6 + column * 166 + 80, 36 + row * 196 + 80) for row in range(2) for column in range(5)]
    assert [sheet.getpixel(middle) for middle in middles[:6]] == colors and sheet.getpixel(middles[6]) == (255,) * 3
