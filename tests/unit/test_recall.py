"""Retrieval: ranks against a naive count and torchmetrics, captions from each form of file, published figures."""

import csv
import json

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torchmetrics.retrieval import RetrievalHitRate, RetrievalRecall

from coop import CoopError
from coop.retrieval import recall
from coop.retrieval.captions import Captions, read_captions
from coop.retrieval.options import RetrieveOptions
from coop.retrieval.recall import both_ways, published, ranks, recalls


@pytest.fixture
def collection() -> tuple[Captions, torch.Tensor, torch.Tensor]:
    """30 images with one to five captions each, features of both near each other."""
    torch.manual_seed(0)
    owners = [image for image in range(30) for _ in range(1 + image % 5)]
    images = F.normalize(torch.randn(30, 16), dim=1)
    texts = F.normalize(images[owners] + 0.9 * torch.randn(len(owners), 16), dim=1)
    return Captions([f"{i}.jpg" for i in range(30)], [f"text {i}" for i in range(len(owners))], owners), images, texts


def naive_recall(scores, right, k) -> float:
    """Of each row: is one of the right columns among the first k?"""
    hits = 0
    for row, answers in zip(scores.tolist(), right.tolist(), strict=True):
        order = sorted(range(len(row)), key=lambda column: -row[column])
        hits += any(answers[column] for column in order[:k])
    return hits / len(scores)


@pytest.mark.parametrize("at_once", [1, 100, 2**25])
def test_recall_equals_a_naive_count_and_torchmetrics(collection, monkeypatch, at_once):
    captions, images, texts = collection
    monkeypatch.setattr(recall, "SCORES_AT_ONCE", at_once)
    found = recalls(both_ways(captions, images, texts))
    right = torch.tensor(captions.owners)[None] == torch.arange(30)[:, None]
    for way, scores, answers, metric in (
        ("image_to_text", images @ texts.T, right, RetrievalHitRate),
        ("text_to_image", texts @ images.T, right.T, RetrievalRecall),  # one right answer each
    ):
        rows = torch.arange(len(scores))[:, None].expand_as(scores)
        for k in (1, 5, 10):
            ours = found[f"{way}/recall@{k}"]
            assert 0.1 < ours < 1
            assert ours == naive_recall(scores, answers, k), (way, k)
            theirs = metric(top_k=k)(scores.flatten(), answers.flatten(), indexes=rows.flatten())
            assert ours == pytest.approx(theirs.item(), abs=1e-6), (way, k)


def test_the_median_rank_is_counted_from_one(collection):
    captions, images, texts = collection
    found = both_ways(captions, images, texts)
    by_hand = [1 + sum(s >= row[o] for g, s in enumerate(row) if g != o) for row, o in
               zip((texts @ images.T).tolist(), captions.owners, strict=True)]  # fmt: skip
    assert found["text_to_image"].tolist() == by_hand
    middle = sorted(by_hand)
    assert (
        recalls(found)["text_to_image/median_rank"] == (middle[(len(middle) - 1) // 2] + middle[len(middle) // 2]) / 2
    )


def test_ties_among_several_captions_equal_a_naive_count_and_torchmetrics(collection):
    """Whole numbers, so that most scores are ties; torchmetrics is told that right answers come just behind theirs."""
    captions, images, texts = collection
    images, texts = (images * 3).round(), (texts * 3).round()
    right = torch.tensor(captions.owners)[None] == torch.arange(30)[:, None]
    found = both_ways(captions, images, texts)
    for way, scores, answers in (
        ("image_to_text", images @ texts.T, right),
        ("text_to_image", texts @ images.T, right.T),
    ):
        naive = []
        for row, correct in zip(scores.tolist(), answers.tolist(), strict=True):
            best = max(score for score, is_right in zip(row, correct, strict=True) if is_right)
            naive.append(1 + sum(s >= best and not is_right for s, is_right in zip(row, correct, strict=True)))
        assert found[way].tolist() == naive
        assert sum(row.count(max(row)) > 1 for row in scores.tolist()) > 5, "ties for the first place"
        behind, rows = scores - 0.5 * answers.float(), torch.arange(len(scores))[:, None].expand_as(scores)
        for k in (1, 5, 10):
            theirs = RetrievalHitRate(top_k=k)(behind.flatten(), answers.flatten(), indexes=rows.flatten())
            assert recalls(found)[f"{way}/recall@{k}"] == pytest.approx(theirs.item(), abs=1e-6), (way, k)


def test_captions_of_images_that_are_left_out_are_left_out(collection):
    """The figures are those of a collection that never had them."""
    captions, _, texts = collection
    kept, rows = recall.readable(captions, {"0.jpg", "7.jpg"})
    assert kept.images == [path for path in captions.images if path not in ("0.jpg", "7.jpg")]
    assert [kept.images[owner] for owner in kept.owners] == [captions.images[captions.owners[row]] for row in rows]
    assert kept.texts == [captions.texts[row] for row in rows] and len(rows) == len(texts) - 1 - 3
    assert recall.readable(captions, {}) == (captions, list(range(len(texts))))


def test_ties_count_against_the_model():
    """A model that says the same of everything finds nothing; an image's own captions do not stand in its way."""
    same, owners = torch.ones(6, 4) / 2, torch.tensor([0, 0, 1, 1, 2, 2])
    assert ranks(same[:3], torch.arange(3), same, owners).tolist() == [5, 5, 5]
    assert ranks(same, owners, same[:3], torch.arange(3)).tolist() == [3] * 6
    assert ranks(same * torch.nan, owners, same[:3], torch.arange(3)).tolist() == [3] * 6


def test_published_figures_stand_beside_the_same_setting_alone():
    coco = Captions(["x"] * 5000, [], [], "coco")
    row = published(coco, "test", "ViT-bigG-14", "laion2b_s39b_b160k")
    assert row["text_to_image/recall@5"] == 0.749 and row["image_to_text/recall@1"] == 0.6738
    flickr = published(coco._replace(dataset="flickr30k", images=["x"] * 1000), "test", "RN50-quickgelu", "openai")
    assert flickr["image_to_text/recall@10"] == 0.979
    for other in (coco._replace(images=["x"] * 100), coco._replace(dataset=None)):
        assert published(other, "test", "ViT-bigG-14", "laion2b_s39b_b160k") is None
    assert published(coco, "val", "ViT-bigG-14", "laion2b_s39b_b160k") is None
    assert published(coco, "test", "ViT-bigG-14", None) is None


@pytest.fixture
def folder(tmp_path):
    for name in ("a.jpg", "b.jpg", "val2014/c.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (len(name), 0, 0)).save(tmp_path / name)
    return tmp_path


def read(captions, images=None, **columns) -> Captions:
    return read_captions(RetrieveOptions(captions=str(captions), images=images and str(images), **columns))


def karpathy(*images: tuple, dataset: str = "flickr30k") -> str:
    fields = ["filename", "split", "sentences", "filepath"]
    made = [dict(zip(fields, (name, split, [{"raw": t, "tokens": []} for t in texts], *where), strict=False))
            for name, split, texts, *where in images]  # fmt: skip
    return json.dumps({"images": made, "dataset": dataset})


def test_karpathys_file(folder):
    one, two = ("a.jpg", "test", ["A cat.", "Cats"]), ("b.jpg", "train", ["Not this"])
    (folder / "dataset.json").write_text(karpathy(one, two, ("b.jpg", "test", ["A dog."])))
    found = read(folder / "dataset.json", None)
    assert found == (
        [str(folder / "a.jpg"), str(folder / "b.jpg")],
        ["A cat.", "Cats", "A dog."],
        [0, 0, 1],
        "flickr30k",
    )
    for where in (folder, folder / "val2014"):  # COCO's own folders, or without them
        (folder / "coco.json").write_text(karpathy(("c.jpg", "test", ["C"], "val2014"), dataset="coco"))
        assert read(folder / "coco.json", where).images == [str(folder / "val2014" / "c.jpg")]


def test_a_csv_file(folder):
    rows = [
        ("caption", "image", "split"),
        ('He said "yes", then no', "a.jpg", "test"),
        ("x", "b.jpg", "val"),
        ("Ü", "a.jpg", "test"),
    ]
    with open(folder / "captions.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    found = read(folder / "captions.csv", None)
    assert found == ([str(folder / "a.jpg")], ['He said "yes", then no', "Ü"], [0, 0], None)
    (folder / "plain.csv").write_text("image,caption\nb.jpg,one\n")
    assert read(folder / "plain.csv", folder).texts == ["one"]


def test_a_hugging_face_data_set(folder, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("COOP_CACHE", str(folder / "cache"))
    data = {"picture": [str(folder / "a.jpg"), str(folder / "b.jpg")], "captions": [["A", "B"], ["C"]]}
    whole = datasets.Dataset.from_dict(data).cast_column("picture", datasets.Image())
    datasets.DatasetDict({"test": whole, "train": whole.select([0])}).save_to_disk(folder / "set")
    columns = {"image_column": "picture", "caption_column": "captions"}
    found = read(folder / "set", **columns)
    assert (found.texts, found.owners, len(found.images)) == (["A", "B", "C"], [0, 0, 1], 2)
    with pytest.raises(CoopError, match="has no column 'image' but picture, captions; give image_column="):
        read(folder / "set", None)
    with pytest.raises(CoopError, match="the column 'captions' holds no images but"):
        read(folder / "set", image_column="captions", caption_column="captions")
    with pytest.raises(CoopError, match="has no split=val; there are test, train"):
        read(folder / "set", split="val", **columns)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.json", karpathy(("a.jpg", "val", ["A"])), "has no images of split=test; there are val"),
        ("x.json", karpathy(("a.jpg", "test", [])), "1 images have no caption, or an empty one: .*a.jpg. Take them out"),
        ("x.json", karpathy(("z.jpg", "test", ["A"]), ("a.jpg", "test", ["B"])), r"1 of its 2 images are not there: .*/z.jpg. Give images=DIR, the folder"),
        ("x.json", '{"images": [{"filename": 3}]}', r"images\[0\].filename is 3: must be text"),
        ("x.json", "{", "not readable as JSON"),
        ("x.csv", "file,text\na.jpg,A\n", "has no column 'image' but file, text; give image_column="),
        ("x.csv", "image,caption\n", "no rows of split=test"),
        ("x.csv", "image,caption\na.jpg, \n", "1 images have no caption, or an empty one"),
        ("x.csv", "image,caption\na.jpg\n", "1 images have no caption, or an empty one"),
        ("x.csv", "caption,image\nA\n", "images are not there"),
        ("x.csv", "", "has no column 'image' but no header line"),
        ("missing.csv", None, "can't be read as a CSV file in UTF-8"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_captions(folder, name, content, message):
    if content is not None:
        (folder / name).write_text(content)
    with pytest.raises(CoopError, match=f"^captions=.*{name}: .*{message}"):
        read(folder / name, None)
