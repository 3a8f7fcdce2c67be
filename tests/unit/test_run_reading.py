"""What a run shows of itself: calibration, confusions, how the context moved, the words near it."""

import json

import numpy as np
import pytest
import torch

from coop import PromptLearner
from coop.clip.text.vocabulary import vocabulary
from coop.errors import CoopError
from coop.evaluation import plots as pictures
from coop.evaluation.metrics import per_class
from coop.evaluation.plots import draw_history, draw_per_class
from coop.evaluation.words import nearest_words
from coop.methods.linear_probe import LinearProbe
from coop.training.history import History, moved


def predictions(labels, predicted, confidence) -> dict[str, np.ndarray]:
    columns = {"label": labels, "predicted": predicted, "confidence": confidence}
    return {key: np.asarray(column) for key, column in columns.items()}


def test_per_class_by_hand():
    """Six images: 0 right with 0.9, 0 as 1 twice, 1 right with 0.4, 2 as 0, 2 right with 1.0."""
    labels, predicted, names = [0, 0, 0, 1, 2, 2], [0, 1, 1, 1, 0, 2], ["dog", "cat", "ant", "never seen"]
    contents = per_class(predictions(labels, predicted, [0.9, 0.6, 0.55, 0.4, 0.5, 1.0]), names)
    assert [entry["n_test"] for entry in contents["classes"]] == [3, 1, 2, 0]
    assert [entry["acc"] for entry in contents["classes"]] == [pytest.approx(1 / 3), 1.0, 0.5, None]
    dog, ant = (
        {"classname": "dog", "predicted": "cat", "count": 2},
        {"classname": "ant", "predicted": "dog", "count": 1},
    )
    assert contents["confused"] == [dog, ant]
    assert per_class(predictions(labels, predicted, np.ones(6)), names, top=1)["confused"] == [dog]
    assert per_class(predictions(labels, labels, np.ones(6)), names)["confused"] == []
    assert json.loads(json.dumps(contents)) == contents


@pytest.mark.parametrize("classes", [2, 40])
def test_pictures_are_drawn_for_few_and_many_classes(tmp_path, classes):
    labels, confidence = np.arange(200) % classes, np.linspace(0.1, 1, 200)
    predicted = predictions(labels, (labels + (np.arange(200) % 3 == 0)) % classes, confidence)
    draw_per_class(per_class(predicted, [f"a [class] ${n}" for n in range(classes)]), tmp_path / "classes.png")
    draw_per_class(per_class(predictions(labels, labels, confidence), ["x"] * classes), tmp_path / "right.png")
    records = [{"epoch": e, "lr": 0.1, "train/loss": 1 / e, "ctx_moved": [0.1 * e] * classes} for e in (1, 2)]
    draw_history(records, tmp_path / "history.png")
    for name in ("classes", "right", "history"):
        assert (tmp_path / f"{name}.png").read_bytes()[:4] == b"\x89PNG"


def drawn(monkeypatch, classes):
    """The panels of per_class.png: titles, and texts."""
    figures = []
    monkeypatch.setattr(pictures, "_save", lambda figure, path: figures.append(figure))
    draw_per_class({"classes": classes, "confused": [], "calibration": {"ece": 0.0, "bins": []}}, None)
    return {ax.get_title(loc="right"): [text.get_text() for text in ax.texts] for ax in figures[0].axes}


def test_many_classes_at_nought_or_all_are_counted_and_the_costly_ones_named(monkeypatch):
    """Of 30 classes: 20 all right, 8 all wrong (of 1 to 8 images), two at 45 of 50 and at 5 of 10."""
    accs = [(1.0, 4)] * 20 + [(0.0, n) for n in range(1, 9)] + [(0.9, 50), (0.5, 10)]
    classes = [{"classname": f"c{i}", "n_test": n, "acc": acc} for i, (acc, n) in enumerate(accs)]
    panels = drawn(monkeypatch, classes)
    assert panels["30 classes by accuracy"] == [*("", "", "", "", "", "1", "", "", "", "1"), "8", "20"]
    assert panels["classes with the most mistakes"][:5] == ["0/8", "0/7", "0/6", "0/5", "5/10"]
    assert "45/50" in panels["classes with the most mistakes"]


def test_few_classes_stand_with_their_numbers_of_images(monkeypatch):
    classes = [{"classname": "a", "n_test": 4, "acc": 0.75}, {"classname": "b", "n_test": 0, "acc": None}]
    assert drawn(monkeypatch, classes)[""] == ["3/4"]


def test_movement_by_hand():
    start = torch.zeros(2, 3)
    assert moved(torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 0.0]]), start) == [5.0, 0.0]
    per_class_ctx = torch.tensor([[[3.0, 4.0]], [[0.0, 1.0]]])
    assert moved(per_class_ctx, torch.zeros(2, 1, 2)) == [3.0]


def test_history_goes_on_where_a_checkpoint_was():
    history, other = History(), History()
    history.records, history.start = [{"epoch": 1}], torch.ones(2, 3)
    other.load_state_dict(history.state_dict())
    assert other.records == [{"epoch": 1}] and torch.equal(other.start, torch.ones(2, 3))


# The words near the context


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("class_specific", [False, True])
def test_a_context_of_words_is_nearest_to_these_words(small_clip, metric, class_specific):
    learner = PromptLearner(small_clip, ["dog", "cat"], ctx_init="a photo of a", class_specific=class_specific)
    contents = nearest_words(learner, top=2, metric=metric)
    expected = ["a", "photo", "of", "a"] * (2 if class_specific else 1)
    assert [vector["words"][0]["word"] for vector in contents["vectors"]] == expected
    assert [vector["vector"] for vector in contents["vectors"]] == [1, 2, 3, 4] * (2 if class_specific else 1)
    names = [vector["classname"] for vector in contents["vectors"]]
    assert names == (["dog"] * 4 + ["cat"] * 4 if class_specific else [None] * 4)
    for vector in contents["vectors"]:
        best, second = (word["distance"] for word in vector["words"])
        assert best == pytest.approx(0.0 if metric == "euclidean" else 1.0, abs=1e-3)
        assert (second > best) if metric == "euclidean" else (second < best)


def test_distances_by_the_formula(small_clip):
    learner = PromptLearner(small_clip, ["dog"], n_ctx=2)
    weight = small_clip.token_embedding.weight
    distances = (learner.ctx[0] - weight).norm(dim=1)
    (first, *_) = nearest_words(learner, top=3)["vectors"]
    assert [word["distance"] for word in first["words"]] == pytest.approx(
        distances.sort().values[:3].tolist(), abs=1e-4
    )


def test_rows_that_were_never_trained_are_left_out(tiny_clip):
    """In the bundled backbone they are zero, which would be near to every vector."""
    learner = PromptLearner(tiny_clip, ["dog"], n_ctx=1)
    learner.ctx.data.zero_()
    (vector,) = nearest_words(learner, top=3)["vectors"]
    assert vector["words"][0]["distance"] > 0.01


def test_words_alone(small_clip):
    tokens = vocabulary(small_clip.tokenizer, range(49408))
    assert len(tokens) == 49408
    special, photo = small_clip.tokenizer.encode("photo")[0], tokens[small_clip.tokenizer.encode("photo")[0]]
    assert photo == ("photo", True) and tokens[special].text == "photo"
    assert not any(token.is_word for token in tokens[-2:]), "start and end of text"
    assert not tokens[0].is_word, "a byte that goes on with a word"
    learner = PromptLearner(small_clip, ["dog"], n_ctx=1)
    words = nearest_words(learner, top=50, only_words=True)["vectors"][0]["words"]
    texts = {token.text for token in tokens if token.is_word}
    assert all(word["word"] in texts for word in words)


def test_what_cannot_be_interpreted(small_clip):
    with pytest.raises(CoopError, match="LinearProbe has no context vectors"):
        nearest_words(LinearProbe(small_clip, ["dog", "cat"]))
    learner = PromptLearner(small_clip, ["dog"], n_ctx=1)
    with pytest.raises(CoopError, match="metric=l1: allowed are euclidean, cosine"):
        nearest_words(learner, metric="l1")
    with pytest.raises(CoopError, match="top=0"):
        nearest_words(learner, top=0)
