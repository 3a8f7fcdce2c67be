"""The prompts that PromptLearner writes, held against a naive formula and against plain open_clip."""

import open_clip
import pytest
import small_clip as small
import torch
import torch.nn.functional as F

from coop import CoopError, FrozenCLIP, PromptLearner

SOS, EOS, STOP = 49406, 49407, 269  # STOP is the token of a full stop at the end of a word
NAMES = ["dog", "grey_cat", "Boeing 737-800", "C-130", "face (easy)", "2012 Audi", "mountain bike", "vehicle (old) 2"]
POSITIONS = ["end", "middle", "front"]

encode = small.tokenizer().encode


def naive(name: str, m: int, position: str) -> list[int | str]:
    """[SOS], vectors "v0" .. "vM-1" and tokens in the order of the paper; name and full stop are tokenized together."""
    name = name.replace("_", " ")
    alone, together = encode(name), encode(f"{name}.")
    vectors = [f"v{i}" for i in range(m)]
    if position == "end":
        return [SOS, *vectors, *together, EOS]
    before = m // 2 if position == "middle" else 0
    cut = len(alone)
    return [SOS, *vectors[:before], *together[:cut], *vectors[before:], *together[cut:], EOS]


def written(learner: PromptLearner) -> list[list[int | str]]:
    """What the learner's `embeddings()` hold: each place is recognized by its embedding."""
    embeddings, ids = learner.embeddings()
    table = learner.clip.token_embedding.weight
    rows = []
    for k, (row, tokens) in enumerate(zip(embeddings, ids.tolist(), strict=True)):
        context = learner.ctx[k] if learner.class_specific else learner.ctx
        vectors = {vector.numpy().tobytes(): f"v{i}" for i, vector in enumerate(context.detach())}
        places = []
        for embedding, token in zip(row.detach(), tokens, strict=True):
            places.append(vectors.get(embedding.numpy().tobytes(), token))
            if isinstance(places[-1], int):
                assert torch.equal(embedding, table[token])
        rows.append(places)
    return rows


@pytest.mark.parametrize("class_specific", [False, True], ids=["unified", "csc"])
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("m", [1, 2, 4, 5, 16])
def test_layout(small_clip, m, position, class_specific):
    learner = PromptLearner(small_clip, NAMES, n_ctx=m, class_specific=class_specific, class_token_position=position)
    for name, row in zip(NAMES, written(learner), strict=True):
        expected = naive(name, m, position)
        assert row == expected + [0] * (77 - len(expected)), name


def test_middle_puts_the_smaller_half_first(small_clip):
    (row,) = written(PromptLearner(small_clip, ["dog"], n_ctx=5, class_token_position="middle"))
    (dog,) = encode("dog")
    assert row[:10] == [SOS, "v0", "v1", dog, "v2", "v3", "v4", STOP, EOS, 0]
    (row,) = written(PromptLearner(small_clip, ["dog"], n_ctx=1, class_token_position="middle"))
    assert row[:6] == [SOS, dog, "v0", STOP, EOS, 0]


def test_a_bracket_at_the_end_takes_the_full_stop_along(small_clip):
    """The tokenizer merges `)` and `.`: the merged token stays with the name, as in the original."""
    merged = encode("face (easy).")
    assert len(merged) == len(encode("face (easy)"))
    (row,) = written(PromptLearner(small_clip, ["face (easy)"], n_ctx=2, class_token_position="front"))
    assert row[: len(merged) + 4] == [SOS, *merged, "v0", "v1", EOS]


def test_underscores_are_spaces(small_clip):
    (with_spaces,) = written(PromptLearner(small_clip, ["grey cat"], n_ctx=2))
    (with_underscores,) = written(PromptLearner(small_clip, ["grey_cat"], n_ctx=2))
    assert with_spaces == with_underscores
    assert PromptLearner(small_clip, ["grey_cat"], n_ctx=2).classnames == ["grey cat"]


@pytest.mark.parametrize("class_specific", [False, True], ids=["unified", "csc"])
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("m", [1, 3, 16])
def test_embeddings_through_open_clip_equal_the_learner(small_clip, m, position, class_specific):
    learner = PromptLearner(small_clip, NAMES, n_ctx=m, class_specific=class_specific, class_token_position=position)
    embeddings, ids = learner.embeddings()
    model = small_clip.model
    x = model.transformer(embeddings + model.positional_embedding, attn_mask=model.attn_mask)
    x = model.ln_final(x)[torch.arange(len(NAMES)), ids.argmax(dim=1)] @ model.text_projection
    assert torch.allclose(learner(), F.normalize(x, dim=-1), atol=1e-5)
    assert torch.allclose(learner().norm(dim=-1), torch.ones(len(NAMES)), atol=1e-6)
    (grad,) = torch.autograd.grad(F.normalize(x, dim=-1)[:, 0].sum(), learner.ctx)
    (ours,) = torch.autograd.grad(learner()[:, 0].sum(), learner.ctx)
    assert torch.allclose(ours, grad, atol=1e-5 * grad.norm().item())


@pytest.mark.parametrize(("class_specific", "expected"), [(False, 4 * 128), (True, 3 * 4 * 128)])
def test_only_the_context_is_trained(small_clip, class_specific, expected):
    learner = PromptLearner(small_clip, ["a", "b", "c"], n_ctx=4, class_specific=class_specific)
    assert [(name, parameter.numel()) for name, parameter in learner.named_parameters()] == [("ctx", expected)]
    assert learner.trainable_params == expected
    assert list(learner.state_dict()) == ["ctx"]
    assert learner.transfers_to_other_classes is not class_specific


def test_random_start_is_that_of_the_paper(small_clip):
    torch.manual_seed(0)
    learner = PromptLearner(small_clip, NAMES, n_ctx=16, class_specific=True)
    assert learner.ctx.std().item() == pytest.approx(0.02, rel=0.02)
    assert learner.ctx.mean().item() == pytest.approx(0, abs=1e-3)
    torch.manual_seed(0)
    again = PromptLearner(small_clip, NAMES, n_ctx=16, class_specific=True)
    assert torch.equal(learner.ctx, again.ctx)
    torch.manual_seed(1)
    assert not torch.equal(learner.ctx, PromptLearner(small_clip, NAMES, n_ctx=16, class_specific=True).ctx)


def test_sixteen_vectors_without_a_word_about_it(small_clip):
    assert PromptLearner(small_clip, ["dog"]).n_ctx == 16


@pytest.mark.parametrize("class_specific", [False, True], ids=["unified", "csc"])
@pytest.mark.parametrize("position", POSITIONS)
def test_words_start_the_context(small_clip, position, class_specific):
    words = "a photo of a"
    learner = PromptLearner(
        small_clip, ["dog", "cat"], ctx_init=words, class_specific=class_specific, class_token_position=position
    )
    assert learner.n_ctx == 4
    expected = small_clip.token_embedding.weight[torch.tensor(encode(words))]
    assert torch.equal(learner.ctx, expected.expand(2, -1, -1) if class_specific else expected)
    sentences = {"end": "a photo of a {}.", "middle": "a photo {} of a.", "front": "{} a photo of a."}
    plain = small_clip.encode_text([sentences[position].format(name) for name in ("dog", "cat")])
    assert (learner() - plain).abs().max() < 1e-6


def test_words_may_have_underscores_and_agree_with_n_ctx(small_clip):
    first = PromptLearner(small_clip, ["dog"], ctx_init="a_photo_of_a")
    assert torch.equal(first.ctx, PromptLearner(small_clip, ["dog"], n_ctx=4, ctx_init="a photo of a").ctx)


@pytest.mark.parametrize("n_ctx", [1, 3, 5, 16])
def test_words_against_another_number_are_refused(small_clip, n_ctx):
    with pytest.raises(CoopError, match=rf'n_ctx={n_ctx} with method.ctx_init="a photo of a".*4.*leave n_ctx out'):
        PromptLearner(small_clip, ["dog"], n_ctx=n_ctx, ctx_init="a photo of a")


@pytest.mark.parametrize("words", ["", "  ", "_"])
def test_empty_words_are_refused(small_clip, words):
    with pytest.raises(CoopError, match="ctx_init"):
        PromptLearner(small_clip, ["dog"], ctx_init=words)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"n_ctx": 0}, "n_ctx=0"), ({"n_ctx": -1}, "n_ctx=-1"), ({"class_token_position": "left"}, "end, middle, front"),
     ({"class_chunk": 0}, "class_chunk=0")],
)  # fmt: skip
def test_impossible_options(small_clip, options, said):
    with pytest.raises(CoopError, match=said):
        PromptLearner(small_clip, ["dog"], **options)


@pytest.mark.parametrize("position", POSITIONS)
def test_the_longest_prompt_that_fits_and_one_more(small_clip, position):
    """77 = [SOS] + M + dog + . + [EOS]"""
    learner = PromptLearner(small_clip, ["dog"], n_ctx=73, class_token_position=position)
    assert written(learner)[0][-1] == EOS
    with pytest.raises(CoopError) as caught:
        PromptLearner(small_clip, ["ox", "mountain dog"], n_ctx=73, class_token_position=position)
    said = str(caught.value)
    assert 'class "mountain dog" has 78 tokens, 73 of them context vectors' in said
    assert "takes 77: lower method.n_ctx to at most 72" in said


@pytest.mark.parametrize("n_ctx", [100, 700])
def test_what_is_said_of_far_too_many_vectors_is_right(small_clip, n_ctx):
    with pytest.raises(CoopError, match=rf"has {n_ctx + 4} tokens, {n_ctx} of them.*to at most 73"):
        PromptLearner(small_clip, ["dog"], n_ctx=n_ctx)


def test_a_name_that_fits_with_no_context_at_all(small_clip):
    with pytest.raises(CoopError, match="shorten the class name"):
        PromptLearner(small_clip, ["dog " * 75], n_ctx=1)


def test_too_long_with_words_does_not_advise_n_ctx(small_clip):
    """ctx_init sets n_ctx; to lower n_ctx beside it is an error of its own."""
    with pytest.raises(CoopError) as caught:
        PromptLearner(small_clip, ["dog " * 71], ctx_init="a photo of a")
    assert "has 78 tokens" in str(caught.value)
    assert "lower method.n_ctx" not in str(caught.value)


class Counted(PromptLearner):
    calls = 0

    def forward(self):
        self.calls += 1
        return super().forward()


def test_text_features_are_kept_in_evaluation_until_the_context_changes(small_clip):
    learner = Counted(small_clip, ["dog", "cat"], n_ctx=2)
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.1, momentum=0.9)

    @torch.no_grad()
    def kept():
        return learner.text_features()

    first = kept()
    assert kept() is first
    assert learner.calls == 1
    assert not first.requires_grad

    learner.eval().text_features()[0, 0].backward()  # whoever asks for a gradient gets one, in any mode
    assert learner.calls == 2
    assert kept() is first, "nothing has changed yet"
    optimizer.step()
    second = kept()
    assert learner.calls == 3
    assert (second - first).abs().max() > 1e-3
    assert torch.equal(second, learner().detach())

    learner.load_state_dict({"ctx": torch.zeros_like(learner.ctx)})
    assert torch.equal(kept(), learner().detach())


def test_features_made_in_inference_mode_serve_afterwards(small_clip):
    learner = PromptLearner(small_clip, ["dog", "cat"], n_ctx=2).eval()
    image_features = small.image_features()
    with torch.inference_mode():
        before = learner.logits(image_features)
    with torch.no_grad():
        assert torch.equal(before, learner.logits(image_features))
    learner.train()
    F.cross_entropy(learner.logits(image_features), torch.arange(48) % 2).backward()
    assert learner.ctx.grad.norm() > 0


def test_logits_are_scaled_cosines(small_clip):
    learner = PromptLearner(small_clip, ["dog", "cat"], n_ctx=2)
    image_features = small.image_features()
    expected = image_features @ learner().T / 0.07
    assert torch.allclose(learner.logits(image_features), expected, rtol=1e-5, atol=1e-5)


class SigLipLike:
    """A tokenizer like SigLIP's: no [SOS], an [EOS] of id 1, padded with 0, and a Hugging Face tokenizer inside."""

    EOS, PAD, FIRST = 1, 0, 2

    class tokenizer:
        pad_token_id = 0

    def __init__(self, context_length: int):
        self.context_length = context_length
        self.words: dict[str, int] = {}

    def __call__(self, texts, context_length=None):
        length = context_length or self.context_length
        rows = []
        for text in texts:
            words = text.lower().replace(".", " .").split()
            ids = [self.words.setdefault(word, self.FIRST + len(self.words)) for word in words][: length - 1]
            rows.append([*ids, self.EOS] + [self.PAD] * (length - len(ids) - 1))
        return torch.tensor(rows)


@pytest.fixture
def siglip_like() -> FrozenCLIP:
    """A tower that attends both ways, on prompts without [SOS]; pools the last place, padding included."""
    torch.manual_seed(0)
    model = open_clip.CustomTextCLIP(
        embed_dim=16,
        vision_cfg={"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
        text_cfg={"context_length": 12, "vocab_size": 64, "width": 32, "heads": 2, "layers": 2, "no_causal_mask": True,
                  "pool_type": "last", "proj_bias": True},
    )  # fmt: skip
    return FrozenCLIP(model, SigLipLike(12), name="siglip-like")


@pytest.mark.parametrize("position", POSITIONS)
def test_a_tokenizer_without_sos(siglip_like, position):
    learner = PromptLearner(siglip_like, ["dog", "grey_cat"], n_ctx=3, class_token_position=position)
    words = siglip_like.tokenizer.words
    dog, cat, stop = [words["dog"]], [words["grey"], words["cat"]], words["."]
    layouts = {
        "end": lambda name: ["v0", "v1", "v2", *name, stop, 1],
        "middle": lambda name: ["v0", *name, "v1", "v2", stop, 1],
        "front": lambda name: [*name, "v0", "v1", "v2", stop, 1],
    }
    for row, name in zip(written(learner), (dog, cat), strict=True):
        expected = layouts[position](name)
        assert row == expected + [0] * (12 - len(expected))
    learner()[0, 0].backward()
    assert learner.ctx.grad.norm() > 0


def test_words_as_context_without_sos(siglip_like):
    learner = PromptLearner(siglip_like, ["dog", "grey_cat"], ctx_init="a photo of a")
    assert learner.n_ctx == 4
    plain = siglip_like.encode_text(["a photo of a dog.", "a photo of a grey cat."])
    assert (learner() - plain).abs().max() < 1e-6


def test_words_are_counted_by_the_backbones_own_tokenizer(siglip_like):
    """The words "pet ..." are two tokens of CLIP's and four of this one."""
    assert PromptLearner(siglip_like, ["dog"], n_ctx=4, ctx_init="pet ...").n_ctx == 4
    with pytest.raises(CoopError, match=r"n_ctx=2 .* the words have 4 tokens"):
        PromptLearner(siglip_like, ["dog"], n_ctx=2, ctx_init="pet ...")


def test_over_long_without_sos(siglip_like):
    """12 = M + dog + . + [EOS]"""
    assert PromptLearner(siglip_like, ["dog"], n_ctx=9).n_ctx == 9
    with pytest.raises(CoopError, match=r'class "dog" has 13 tokens.*takes 12: lower method.n_ctx to at most 9'):
        PromptLearner(siglip_like, ["dog"], n_ctx=10)
