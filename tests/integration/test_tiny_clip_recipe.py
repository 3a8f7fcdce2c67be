"""The recipe of the bundled CLIP (experiments/tiny_clip), on miniatures: no package of weights, no WordNet, seconds."""

import json
import math
import sys
from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from coop import FrozenCLIP
from coop.errors import CoopError

RECIPE = Path(__file__).parents[2] / "experiments/tiny_clip"
sys.path.insert(0, str(RECIPE))

import build  # noqa: E402
import export  # noqa: E402
import image_tower  # noqa: E402
import meaning  # noqa: E402
import photographs  # noqa: E402
import prompts as prompts_module  # noqa: E402
import text_tower  # noqa: E402
from image_tower import JointSpace, in_the_order_of, joint_space  # noqa: E402
from prompts import Prompts  # noqa: E402
from text_tower import TextTower, Training, train  # noqa: E402
from validation import read_validation  # noqa: E402
from wordnet import WordNet, read_wordnet  # noqa: E402
from words import Word, classes_below, other_nouns  # noqa: E402

LICENCE = "  1 This software and database is being provided to you ...\n"
# offset, subject file, lemmas, hypernyms (symbol, offset), definition
SYNSETS = [
    (100, 3, ["entity"], [], "that which is"),
    (200, 5, ["animal", "beast"], [("@", 100)], "a living organism"),
    (300, 5, ["dog", "domestic_dog"], [("@", 200)], 'a member of the genus Canis; "the dog barked all night"'),
    (400, 5, ["cat"], [("@", 200)], "feline mammal"),
    (500, 18, ["Fido"], [("@i", 300)], "a dog's name"),
    (600, 10, ["dog"], [("@", 100)], "a word of abuse"),
    (700, 20, ["catalpa_tree"], [("@", 100)], "a tree that hardly anybody names"),
]
INDEX = [
    ("animal", [200], 3), ("beast", [200], 0), ("cat", [400], 5), ("catalpa_tree", [700], 0), ("dog", [300, 600], 9),
    ("domestic_dog", [300], 0), ("entity", [100], 1), ("fido", [500], 0),
]  # fmt: skip


def write_dictionary(folder: Path) -> Path:
    """A dictionary of seven synsets in WordNet's format."""
    folder.mkdir(parents=True, exist_ok=True)
    data, index = LICENCE, LICENCE
    for offset, subject, lemmas, hypernyms, definition in SYNSETS:
        names = " ".join(f"{lemma} 0" for lemma in lemmas)
        pointers = " ".join(f"{symbol} {target:08d} n 0000" for symbol, target in [*hypernyms, ("~", 100)])
        data += f"{offset:08d} {subject:02d} n {len(lemmas):02x} {names} {len(hypernyms) + 1:03d} {pointers} | {definition}  \n"
    for lemma, offsets, tagged in INDEX:
        targets = " ".join(f"{offset:08d}" for offset in offsets)
        index += f"{lemma} n {len(offsets)} 2 @ ~ {len(offsets)} {tagged} {targets}  \n"
    (folder / "data.noun").write_text(data, encoding="latin-1")
    (folder / "index.noun").write_text(index, encoding="latin-1")
    return folder


@pytest.fixture
def wordnet(tmp_path) -> WordNet:
    return read_wordnet(write_dictionary(tmp_path / "wordnet"))


def test_reads_wordnet(wordnet):
    assert len(wordnet.synsets) == 7
    assert wordnet.synsets[300] == (5, ("dog", "domestic_dog"), (200,), "a member of the genus Canis")
    assert wordnet.senses["dog"] == [300, 600]
    assert wordnet.in_use == {"animal", "cat", "dog", "entity"}
    assert wordnet.ancestors(500) == {500, 300, 200, 100}, "instances count as kinds"
    assert meaning.described(wordnet, 300) == "dog, domestic dog (animal): a member of the genus Canis"


def test_which_nouns_are_taken(wordnet):
    # No abuse (not physical), no proper name, no rare tree, no "entity"; what is in use comes in.
    assert other_nouns(wordnet) == [("animal", 200), ("beast", 200), ("cat", 400), ("dog", 300), ("domestic_dog", 300)]


def test_classes_below(wordnet):
    below = classes_below(wordnet, [300, 400])
    assert (below[300], below[200], below[100]) == ([0], [0, 1], [0, 1])
    assert 600 not in below


def test_a_missing_dictionary_says_what_to_install(tmp_path):
    with pytest.raises(CoopError, match=r"data\.noun.*apt-get install wordnet-base.*--wordnet"):
        read_wordnet(tmp_path)


def test_a_file_of_another_kind_is_named(tmp_path):
    (write_dictionary(tmp_path) / "data.noun").write_text("name,offset\n", encoding="latin-1")
    with pytest.raises(CoopError, match=r"data\.noun, line 1: not a line of WordNet"):
        read_wordnet(tmp_path)


def test_a_missing_package_says_what_to_install():
    with pytest.raises(CoopError, match=r"no_such_package is missing; install it: pip install .*requirements\.txt"):
        image_tower.package_folder("no_such_package")


def test_closeness_in_the_tree(wordnet):
    closeness = meaning.tree_closeness(wordnet, [500, 200, 700], [300, 400])
    # Fido shares "dog" (1 class of 2) with dog, "animal" (2 of 2) with cat; the tree shares "entity" with both.
    assert closeness.tolist() == [[1, 0], [0, 0], [0, 0]]


def guessed(wordnet, offsets, vectors):
    """Targets with cat and dog as the only classes, at right angles."""
    return meaning.synset_targets(wordnet, offsets, [300, 400], torch.tensor(vectors), torch.eye(2))


def test_targets_of_synsets(wordnet):
    offsets = [200, 300, 400, 700]
    targets = guessed(wordnet, offsets, [[0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    assert targets[300].tolist() == [1, 0] and targets[400].tolist() == [0, 1], "classes lie at their prototypes"
    assert targets[200][0] > 0.3 and targets[200][1] > targets[200][0], "half of it is the mean of the classes below"
    # By hand: catalpa's kernel row is 2 exp(4 (cosine - 1)), times the inverse of the classes' kernel and ridge.
    e = math.exp
    row, same, other = (2 * e(4 * (0.6 - 1)), 2 * e(4 * (0.8 - 1))), 0.5 + 2 + 0.3, 2 * e(-4)
    unnormalized = torch.tensor([row[0] * same - row[1] * other, row[1] * same - row[0] * other])
    assert torch.allclose(targets[700], F.normalize(unnormalized, dim=0), atol=1e-5)


def test_a_bare_word_is_ambiguous():
    words = [Word("crane", "noun", (1,), (2, 1))]
    targets = {1: torch.tensor([1.0, 0.0]), 2: torch.tensor([0.0, 1.0])}
    shown, bare = meaning.word_targets(words, targets)
    assert shown.tolist() == [[1, 0]]
    assert torch.allclose(bare, F.normalize(torch.tensor([[0.5, 1.0]]), dim=-1))


def test_joint_space_keeps_what_tells_classes_apart():
    classifier = torch.nn.Linear(6, 4)
    space = joint_space(classifier, 3)
    assert torch.allclose(space.projection @ space.projection.T, torch.eye(3), atol=1e-6)
    features = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    rows = classifier.weight.detach()
    centered = rows - rows.mean(dim=0)
    # Four rows differ in three directions at most: nothing is lost.
    assert torch.allclose(
        features @ space.projection.T @ space.projection @ centered.T, features @ centered.T, atol=1e-5
    )


def test_weights_of_another_architecture_are_refused():
    own = {"conv.weight": torch.zeros(2, 3), "bn.bias": torch.zeros(2)}
    theirs = {"a.weight": torch.ones(2, 3), "b.bias": torch.ones(2)}
    assert in_the_order_of(own, theirs, Path("x.pth"))["bn.bias"].tolist() == [1, 1]
    for wrong in ({"a.weight": torch.ones(2, 3)}, {"a.weight": torch.ones(2, 4), "b.bias": torch.ones(2)}):
        with pytest.raises(CoopError, match=r"x\.pth: . tensors that are not those of"):
            in_the_order_of(own, wrong, Path("x.pth"))


@pytest.mark.parametrize("medium", photographs.MEDIA)
def test_media_keep_the_size_and_change_the_image(medium):
    noise = torch.randint(0, 255, (56, 56, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    image = Image.fromarray(noise.numpy()).resize((224, 224), Image.Resampling.BICUBIC)
    changed = photographs.MEDIA[medium](image)
    assert (changed.size, changed.mode) == ((224, 224), "RGB")
    assert (photographs.as_input([changed]) - photographs.as_input([image])).abs().mean() > 0.01
    assert changed.tobytes() == photographs.MEDIA[medium](image).tobytes()


WORDS = [
    Word("dog", "name", (0,), (0,)), Word("canine", "synonym", (0,), (0,)), Word("animal", "hypernym", (1,), (1,)),
    Word("beast", "noun", (1,), (1, 2)), *(Word(name, "noun", (2,), (2,)) for name in sorted(set(prompts_module.MADE_AS.values()))),
]  # fmt: skip


def small_prompts(seed: int = 0) -> Prompts:
    shown = F.normalize(torch.randn(len(WORDS), 8, generator=torch.Generator().manual_seed(3)), dim=-1)
    media = dict.fromkeys(photographs.MEDIA, 0.1 * shown[0])
    return Prompts(WORDS, shown, shown.flip(0), [["animal"]] * len(WORDS), media, 0.5, seed)


SMALL = Training(steps=6, batch=20, width=16, layers=2, heads=2, warmup=2)
PROTOTYPES = F.normalize(torch.randn(12, 8, generator=torch.Generator().manual_seed(4)), dim=-1)


def small_tower(settings: Training) -> TextTower:
    prompts = small_prompts()
    vocabulary = prompts.vocabulary()
    return TextTower(settings, vocabulary, prompts.token_meanings(vocabulary))


def test_a_token_starts_where_its_words_lie():
    prompts = small_prompts()
    vocabulary = prompts.vocabulary()
    meanings = prompts.token_meanings(vocabulary)
    dog = prompts.tokenizer.encode("dog")[0]
    assert torch.allclose(meanings[vocabulary.index(dog)], prompts.shown[0])
    assert meanings[vocabulary.index(prompts.tokenizer.encode("photo")[0])].abs().max() == 0


def test_batches_depend_on_seed_and_step_alone():
    first, second = small_prompts(), small_prompts()
    second.batch(0, 20)
    assert first.batch(5, 20).rows == second.batch(5, 20).rows
    assert first.batch(5, 20).rows != first.batch(6, 20).rows
    assert first.batch(5, 20).rows != small_prompts(seed=1).batch(5, 20).rows
    batch = first.batch(5, 400)
    used = set(first.vocabulary())
    assert all(len(row) <= 32 and used.issuperset(row) for row in batch.rows)
    assert torch.allclose(batch.targets.norm(dim=-1), torch.ones(len(batch.rows)))


def test_what_a_template_says_about_the_medium():
    prompts = small_prompts()
    media = {name: torch.full((8,), float(number)) for number, name in enumerate(photographs.MEDIA)}

    def shift(template):
        return prompts._context(template, media).shift

    names = list(photographs.MEDIA)
    assert shift("a photo of a {}.") is None
    assert shift("a dark photo of a {}.").tolist() == [names.index("dark")] * 8
    assert shift("a black and white photo of the {}.").tolist() == [names.index("gray")] * 8
    assert torch.allclose(shift("a toy {}."), 0.5 * prompts.shown[prompts.index["plaything"]])


def test_the_tower_runs_as_open_clip_runs_it():
    prompts = small_prompts()
    text = small_tower(SMALL).eval()
    rows = prompts.batch(0, 20).rows
    ids = torch.zeros(len(rows), 32, dtype=torch.long)
    for row, tokens in zip(ids, rows, strict=True):
        row[: len(tokens)] = torch.tensor([text.rows[token] for token in tokens])
    with torch.no_grad():
        expected = text.clip.encode_text(ids, normalize=True)  # [EOS] has the highest row, so it is found
        assert torch.allclose(text.in_batches(rows, 3), expected, atol=1e-6)


def test_training_lowers_the_loss(tmp_path):
    settings = Training(**{**vars(SMALL), "steps": 60, "lr": 5e-3})
    prompts = small_prompts()
    text = train(prompts, PROTOTYPES, settings, tmp_path / "checkpoint.pt")
    batch = prompts.batch(1000, 100)
    torch.manual_seed(settings.seed)
    fresh = small_tower(settings)
    with torch.no_grad():
        after, before = (
            text_tower.loss_of(t.in_batches(batch.rows, 2), batch, PROTOTYPES, settings) for t in (text, fresh)
        )
    assert after < 0.6 * before


def test_resuming_gives_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(text_tower, "SAVE_EVERY", 2)
    whole = train(small_prompts(), PROTOTYPES, SMALL, tmp_path / "whole.pt").state_dict()

    class Killed(Exception):
        pass

    class Dying(Prompts):
        def batch(self, step, size):
            if step == 5:
                raise Killed
            return super().batch(step, size)

    dying = small_prompts()
    dying.__class__ = Dying
    with pytest.raises(Killed):
        train(dying, PROTOTYPES, SMALL, tmp_path / "killed.pt")
    assert torch.load(tmp_path / "killed.pt", weights_only=True)["step"] == 4
    resumed = train(small_prompts(), PROTOTYPES, SMALL, tmp_path / "killed.pt").state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    other = train(small_prompts(seed=1), PROTOTYPES, SMALL, tmp_path / "other.pt").state_dict()
    assert not torch.equal(whole["clip.text_projection"], other["clip.text_projection"])


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    checkpoint = tmp_path / "checkpoint.pt"
    train(small_prompts(), PROTOTYPES, SMALL, checkpoint)
    with pytest.raises(CoopError, match=r"checkpoint\.pt: of a training with other settings"):
        train(small_prompts(), PROTOTYPES, Training(**{**vars(SMALL), "steps": 8}), checkpoint)
    checkpoint.write_bytes(b"half of a file")
    with pytest.raises(CoopError, match=r"checkpoint\.pt: not a readable checkpoint.*delete it"):
        train(small_prompts(), PROTOTYPES, SMALL, checkpoint)


def random_text_clip() -> torch.nn.Module:
    """A small open_clip model in float64 whose text tower has CLIP's shape and weights of every kind that matter."""
    torch.manual_seed(0)
    text_cfg = dict(context_length=16, vocab_size=50, width=32, heads=2, layers=3)
    vision_cfg = dict(image_size=8, patch_size=8, width=8, layers=1, head_width=8)
    clip = open_clip.CLIP(embed_dim=8, vision_cfg=vision_cfg, text_cfg=text_cfg).double().eval()
    for weight in clip.parameters():
        weight.data += 0.1 * torch.randn_like(weight)
    return clip


@pytest.mark.parametrize("factor", [0.1, 0.3])
def test_rescaling_keeps_the_function(factor):
    clip = random_text_clip()
    ids = torch.randint(1, 49, (20, 16), generator=torch.Generator().manual_seed(1))
    ids[:, 9] = 49
    stream = []
    clip.ln_final.register_forward_hook(lambda module, inputs, output: stream.append(inputs[0]))
    with torch.no_grad():
        before = clip.encode_text(ids)
        export.rescale_residual_stream(clip, factor)
        after = clip.encode_text(ids)
    assert (after - before).abs().max() < 1e-12 * before.abs().max()
    assert torch.allclose(stream[1], factor * stream[0], rtol=1e-9), "yet the stream itself is smaller"


def test_logit_scale_is_found_again():
    cosines = 2 * torch.rand(30, 10, generator=torch.Generator().manual_seed(2)) - 1
    assert export.fit_logit_scale(23.5 * cosines + 4, cosines) == 23.5


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model of the real image architecture (random) and a small text tower, written as the recipe writes it."""
    torch.manual_seed(0)
    tower = image_tower.timm.create_model(image_tower.ARCHITECTURE, pretrained=False).eval()
    space: JointSpace = joint_space(tower.classifier, 8)
    text = small_tower(SMALL).eval()
    config = export.model_config(SMALL, 8, 0.1)
    clip = export.assemble(config, tower, space, text, 25.0)
    export.rescale_residual_stream(clip, 0.1)
    folder = tmp_path_factory.mktemp("exported") / "model"
    export.write_model(clip, config, "# card\n", folder)
    return folder, text, tower, space


def test_open_clip_loads_the_folder(exported):
    folder, text, tower, space = exported
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    model.eval()
    prompt = "a photo of a dog."
    with torch.no_grad():
        given = model.encode_text(open_clip.get_tokenizer(f"local-dir:{folder}")([prompt]), normalize=True)
        wanted = text([small_prompts().row(prompt)])
        assert (given * wanted).sum() > 0.99999
        assert model.logit_scale.exp() == pytest.approx(25, rel=1e-3)
        image = preprocess(Image.new("RGB", (300, 250), (200, 30, 90)))[None]
        own = tower.forward_head(tower.forward_features(image), pre_logits=True) @ space.projection.T
        assert F.cosine_similarity(model.encode_image(image), own).item() > 0.999
    assert (folder / "README.md").read_text() == "# card\n"


def test_rows_of_unused_tokens_are_zero(exported):
    folder, text, *_ = exported
    table = FrozenCLIP.load(f"local-dir:{folder}").token_embedding.weight
    used = torch.zeros(len(table), dtype=torch.bool)
    used[list(text.rows)] = True
    assert table[~used].abs().max() == 0
    assert (table[used].abs().amax(dim=1) > 0).all()


@pytest.mark.parametrize("name", ["open_clip_config.json", "open_clip_model.safetensors"])
def test_a_folder_that_lacks_a_file_says_so(exported, tmp_path, name):
    for path in exported[0].iterdir():
        if path.name != name:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(CoopError, match=name):
        FrozenCLIP.load(f"local-dir:{tmp_path}")


def test_the_command_tells_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["build.py", str(tmp_path / "out"), "--wordnet", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"^error: .*install") as ended:  # a text is exit code 1
        build.main()
    assert isinstance(ended.value.code, str)


def test_the_bundled_model_is_what_the_recipe_writes(tiny_clip):
    folder = Path(__file__).parents[2] / "coop/assets/tiny_clip"
    config = json.loads((folder / "open_clip_config.json").read_text())
    assert config == export.model_config(Training(), 256, build.RESIDUAL_SCALE)
    assert (folder / "README.md").read_text() == (RECIPE / "MODEL_CARD.md").read_text()
    assert sum(path.stat().st_size for path in folder.iterdir()) < 40e6
    table = tiny_clip.token_embedding.weight
    used = (table.abs().sum(dim=1) > 0).sum().item()
    assert 10_000 < used < 30_000


def test_judged_on_validation_images(tmp_path):
    images = tmp_path / "set/images"
    images.mkdir(parents=True)
    rows = {part: [[f"{part}.png", 0, "one"]] for part in ("train", "val", "test")}
    for part in rows:
        Image.new("RGB", (4, 4)).save(images / f"{part}.png")
    (tmp_path / "set/split.json").write_text(json.dumps(rows))
    splits = read_validation(str(tmp_path), image_folders=["set/images"], split_file="split.json")
    assert [Path(item.path).name for item in splits.test] == ["val.png"]
    assert [Path(item.path).name for item in splits.train] == ["train.png"]
    assert splits.val == []
