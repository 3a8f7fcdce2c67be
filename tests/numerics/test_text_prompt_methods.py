"""CoCoOp, ProGrad, TCP and PLOT: what their options mean, what is refused, what mixed precision and batches change."""

import pytest
import pytorch_lightning as pl
import small_clip as small
import torch
import torch.nn.functional as F
from configs import composed
from omegaconf import OmegaConf
from torch.utils.data import DataLoader

from coop import CoopError, FrozenCLIP, Item, PromptLearner
from coop.clip.backbone import normalize
from coop.clip.noise import noise_for
from coop.clip.text.plain import plain_text_features, prompt_embeddings
from coop.clip.transport import sinkhorn
from coop.config import build_method, check
from coop.data.sampling import Splits
from coop.evaluation.metrics import predict
from coop.evaluation.targets import Target, for_target, with_published
from coop.methods.base import Batch
from coop.methods.cocoop import CoCoOp
from coop.methods.plot import PLOT
from coop.methods.prograd import ProGrad
from coop.methods.tcp import TCP
from coop.training.module import LitClassifier

NAMES = ["dog", "sea_horse", "grand piano"]
SGD = {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}


def features(count: int = 6, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(count, 64, generator=torch.Generator().manual_seed(seed)), dim=1)


def batch(count: int = 6) -> Batch:
    return Batch(torch.arange(count) % 3, features(count))


REFUSED = [
    (["method=cocoop", "method.class_specific=true"], "method.class_specific=True: CoCoOp has only class_specific=fal"),
    (["method=cocoop", "method.class_token_position=middle"], "method.class_token_position=middle: CoCoOp has only"),
    (["method=cocoop", "method.condition=label"], "method.condition=label: allowed are image, noise, class"),
    (["method=tcp", "method.class_specific=true"], "method.class_specific=True: TCP has only"),
    (["method=tcp", "method.class_token_position=front"], "method.class_token_position=front: TCP has only"),
    (["method=tcp", "method.layer=0"], "method.layer=0"),
    (["method=tcp", "method.weight=-1"], "method.weight=-1"),
    (["method=plot", "method.class_token_position=middle"], "method.class_token_position=middle: PLOT has only"),
    (["method=plot", "method.class_specific=true"], "method.class_specific=True: PLOT has only"),
    (["method=plot", 'method.ctx_init="a photo of a"'], "method.ctx_init=a photo of a: PLOT has only ctx_init=null"),
    (["method=plot", "method.n_prompts=0"], "method.n_prompts=0: must be at least 1"),
    (["method=plot", "method.eps=0"], "method.eps=0: must be a positive number"),
    (["method=prograd", "method.strength=0"], "method.strength=0"),
    (["method=prograd", "method.temperature=-1"], "method.temperature=-1"),
    (["method=prograd", "method.n_ctx=3"], "expected 1 to 3 words (method.n_ctx=3)"),
    (["method=prograd", "method.ctx_init='{} here'"], "expected 1 to 16 words"),
    (["method=coop", "method.prompt_template='X X'"], "method.prompt_template=X X: needs one {}"),
    (["method=coop", "method.prompt_template='X {}.'", "method.class_token_position=front"], "says where the class"),
]


@pytest.mark.parametrize(
    ("overrides", "said"), REFUSED, ids=lambda value: " ".join(value) if type(value) is list else ""
)
def test_what_cannot_be_is_refused_before_anything_is_loaded(overrides, said):
    with pytest.raises(CoopError) as refused:
        check(composed(*overrides))
    assert said in str(refused.value)


def test_published_settings_by_data_set():
    pets = composed("method=prograd", "dataset=oxford_pets").method
    assert (pets.template, pets.ctx_init) == ("a type of pet, a photo of a {}.",) * 2
    assert composed("method=prograd", "dataset=eurosat").method.template == "a centered satellite photo of {}."
    for dataset, epochs in (("imagenet", 25), ("sun397", 25), ("dtd", 50), ("mini", 50)):
        assert composed("method=tcp", f"dataset={dataset}").epochs == epochs
    ucf, mini = (composed("method=tcp", f"dataset={name}").method for name in ("ucf101", "mini"))
    assert (ucf.prompt_template, mini.prompt_template) == ("a photo of a person doing {}.", "X X X X {}.")
    assert [composed("method=plot", f"dataset={d}").batch_size for d in ("stanford_cars", "dtd")] == [32, 128]
    assert [composed("method=plot", f"dataset={d}").method.global_term for d in ("imagenet", "dtd")] == [True, False]
    cocoop = composed("method=cocoop", "dataset=imagenet")
    assert (cocoop.batch_size, cocoop.epochs, composed("method=kgcoop", "dataset=imagenet").epochs) == (1, 10, 100)
    assert composed("method=cocoop", "epochs=3", "batch_size=8").epochs == 3


# Prompts


def test_words_of_the_template_stay_behind_the_context(small_clip):
    learner = PromptLearner(small_clip, NAMES, n_ctx=4, prompt_template="a photo of a person doing {}, slowly")
    tokens = small_clip.token_ids([f"a photo of a person doing {name.replace('_', ' ')}, slowly" for name in NAMES])
    for ids, slots, expected in zip(learner.ids, learner.slots, tokens, strict=True):
        assert slots[: len(expected)].tolist() == [-1, 0, 1, 2, 3] + [-1] * (len(expected) - 5)
        assert ids[: len(expected)].tolist() == expected
    with torch.no_grad():
        learner.ctx.copy_(small_clip.token_embedding.weight[torch.tensor(tokens[0][1:5])])
    wanted = small_clip.encode_text([f"a photo of a person doing {name}, slowly" for name in learner.classnames])
    assert torch.allclose(learner(), wanted, atol=1e-5)


def test_a_template_without_room_for_the_context_is_refused(small_clip):
    with pytest.raises(CoopError, match=r"3 tokens stand before the class name, where 4 context vectors"):
        PromptLearner(small_clip, NAMES, n_ctx=4, prompt_template="X X X {}.")


def test_prograd_counts_words_and_not_tokens(small_clip):
    """ "pet," is one word of two tokens: the last "a" stays in the prompt, behind the context."""
    words = "a type of pet, a photo of a"
    method = ProGrad(small_clip, NAMES, template=f"{words} {{}}.", ctx_init=f"{words} {{}}.", n_ctx=10)
    (text,) = small_clip.token_ids([words])
    vectors = small_clip.token_embedding.weight[torch.tensor(text[1:-1])]
    assert len(vectors) == 9
    assert torch.equal(method.ctx[:2], torch.zeros(2, 128))
    assert torch.equal(method.ctx[2:], vectors[:8])
    (prompt,) = small_clip.token_ids([f"X X {words} dog."])
    assert method.ids[0, : len(prompt)].tolist() == prompt
    assert (method.slots[0] >= 0).nonzero().flatten().tolist() == list(range(1, 11))
    assert method.ids[0, 11] == text[-2], "the a"


# ProGrad's gradient


@pytest.fixture
def method(small_clip, request) -> ProGrad:
    torch.manual_seed(0)
    return ProGrad(small_clip, NAMES, template="a photo of a {}.", n_ctx=4, **getattr(request, "param", {}))


def against_or_with(method: ProGrad, against: bool) -> Batch:
    """Images whose labels are what zero-shot CLIP thinks least, or most, probable."""
    zero_shot = method.logits_of(features(), method.teacher())
    return Batch(zero_shot.argmin(dim=1) if against else zero_shot.argmax(dim=1), features())


def gradients(method: ProGrad, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    loss, _ = method.loss(batch)
    (g,) = torch.autograd.grad(loss, method.ctx, retain_graph=True)
    (h,) = torch.autograd.grad(method._to_backward[0], method.ctx)
    return g, h


OPTIONS = [{}, {"checkpoint": True}, {"class_chunk": 2}, {"class_specific": True}, {"strength": 0.8}]


@pytest.mark.parametrize("method", OPTIONS, ids=str, indirect=True)
def test_what_opposes_the_teacher_is_taken_off(method):
    against, along = against_or_with(method, True), against_or_with(method, False)
    g, h = gradients(method, against)
    assert (g * h).sum() < 0
    method.backward(method.loss(against)[0])
    wanted = g - method.strength * (g * h).sum() / (h * h).sum() * h
    assert torch.allclose(method.ctx.grad, wanted, rtol=1e-4, atol=1e-5)
    assert (wanted - g).norm() > 0.1 * g.norm()

    method.ctx.grad = None
    g, h = gradients(method, along)
    assert (g * h).sum() > 0
    method.backward(method.loss(along)[0])
    assert torch.equal(method.ctx.grad, g)


def test_mixed_precision_scales_both_gradients_and_leaves_out_what_overflows(method):
    batch = against_or_with(method, True)
    method.backward(method.loss(batch)[0])
    wanted, method.ctx.grad = method.ctx.grad, None
    method.backward(2.0**16 * method.loss(batch)[0])
    assert torch.allclose(method.ctx.grad / 2.0**16, wanted, rtol=1e-5, atol=1e-6)

    method.ctx.grad = None
    loss, _ = method.loss(batch)
    distance, nothing = method._to_backward
    method._to_backward = distance * torch.inf, nothing
    method.backward(loss)
    assert not method.ctx.grad.isfinite().any(), "the scaler has to see it"


def test_a_run_in_half_precision_goes_where_the_whole_one_does(tmp_path):
    """Autocast to bfloat16 on a CPU; only the towers' products lose digits."""
    learned = {}
    for precision in ("32-true", "bf16-mixed"):
        clip = FrozenCLIP(small.small_clip(), small.tokenizer())
        torch.manual_seed(0)
        method = ProGrad(clip, NAMES, template="a photo of a {}.", n_ctx=4)
        start = method.ctx.detach().clone()
        trainer = pl.Trainer(accelerator="cpu", max_epochs=2, precision=precision, logger=False,
                             enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False,
                             default_root_dir=tmp_path)  # fmt: skip
        rows = [{"image_features": features(6), "label": torch.arange(6) % 3}] * 3
        trainer.fit(LitClassifier(method, SGD | {"lr": 0.002}, 2), DataLoader(rows, batch_size=None))
        learned[precision] = method.ctx.detach() - start
    whole, half = learned.values()
    assert F.cosine_similarity(whole.flatten(), half.flatten(), dim=0) > 0.98


# CoCoOp


def test_each_image_has_prompts_of_its_own(small_clip):
    method = CoCoOp(small_clip, NAMES)
    assert (method.n_ctx, method.trainable_params) == (4, 4 * 128 + 64 * 4 + 4 + 4 * 128 + 128)
    images = features(3)
    text_features = method.text_features(images)
    for image, ours in zip(images, text_features, strict=True):
        learner = PromptLearner(small_clip, NAMES, n_ctx=4)
        learner.ctx.data = (method.ctx + method.meta_net(image)).detach()
        assert torch.allclose(ours, learner(), atol=1e-6)
    assert (text_features[0] - text_features[1]).abs().max() > 1e-3
    with pytest.raises(CoopError, match="text features for each image"):
        method.text_features()


def test_cocoop_is_exact():
    """Features and gradients of the plain way, B * K prompts of 77 tokens, in double precision."""
    clip = FrozenCLIP(small.small_clip().double(), small.tokenizer())
    torch.manual_seed(0)
    method, images = CoCoOp(clip, NAMES, class_chunk=2), features(3).double()
    contexts = method.ctx + method.meta_net(images)[:, None]
    plain = torch.stack([
        normalize(plain_text_features(
            clip.model, method.ids, prompt_embeddings(clip.model, method.ids, method.slots, context)
        )) for context in contexts
    ])  # fmt: skip
    ours, target = method.text_features(images), torch.randn(plain.shape, dtype=torch.float64)
    assert (ours - plain).abs().max() < 1e-10
    pairs = (torch.autograd.grad((x * target).sum(), list(method.parameters())) for x in (ours, plain))
    for a, b in zip(*pairs, strict=True):
        assert (a - b).abs().max() < 1e-10


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_towers_of_other_precisions(dtype):
    """What is learned is float32 at least; so are the logits."""
    clip = FrozenCLIP(small.small_clip().to(dtype), small.tokenizer())
    wanted = torch.promote_types(dtype, torch.float32)
    for kind, options in ((CoCoOp, {}), (CoCoOp, {"condition": "class"}), (TCP, {"template": "a {}."}), (PLOT, {}),
                          (ProGrad, {"template": "a {}.", "ctx_init": "a photo of a"})):  # fmt: skip
        method = kind(clip, NAMES, **options)
        given = clip.encode_image(torch.randn(3, 3, 32, 32), method.feature_kind)
        loss, logits = method.loss(Batch(torch.arange(3), given))
        method.backward(loss)
        assert logits.dtype == wanted
        assert all(p.dtype == wanted and p.grad.isfinite().all() for p in method.parameters())


def test_condition_class_needs_no_image(small_clip):
    method = CoCoOp(small_clip, NAMES, condition="class", template="a photo of a {}.").eval()
    moved = (
        method.ctx + method.meta_net(small_clip.encode_text([f"a photo of a {n}." for n in method.classnames]))[:, None]
    )
    learner = PromptLearner(small_clip, NAMES, n_ctx=4, class_specific=True)
    learner.ctx.data = moved.detach()
    assert torch.allclose(method.text_features(), learner(), atol=1e-6)
    assert method.text_features(features(2)).shape == (3, 64)
    assert method.transfers_to_other_classes
    method.loss(batch())[0].backward()
    assert method.meta_net[0].weight.grad.abs().max() > 0


def test_noise_is_the_features_own(small_clip):
    """The same whatever the batch, the order and the random state; unrelated to the image; of the same norm."""
    given = 3 * features(400)
    noise = noise_for(given)
    torch.manual_seed(5)
    assert torch.equal(noise_for(given[7:9].flip(0)).flip(0), noise[7:9])
    assert torch.allclose(noise.norm(dim=1), given.norm(dim=1), rtol=1e-5)
    unit = F.normalize(noise, dim=1)
    assert abs((unit * F.normalize(given, dim=1)).sum(dim=1).mean()) < 0.03, "of the image there is nothing in it"
    others = (unit @ unit.T).fill_diagonal_(0)
    assert abs(others.mean()) < 0.002
    assert others.std() == pytest.approx(64**-0.5, rel=0.05)
    assert unit.mean(dim=0).abs().max() < 0.03
    nearly = given.clone()
    nearly[:, 0] = torch.nextafter(nearly[:, 0], torch.ones(()))
    assert abs((F.normalize(noise_for(nearly), dim=1) * unit).sum(dim=1).mean()) < 0.03
    image, noisy = (CoCoOp(small_clip, NAMES, condition=c) for c in ("image", "noise"))
    noisy.load_state_dict(image.state_dict())
    assert torch.allclose(noisy.text_features(given), image.text_features(noise), atol=1e-6)


def test_no_more_prompts_at_a_time_than_fit(small_clip, monkeypatch):
    monkeypatch.setattr("coop.methods.cocoop.PROMPTS_AT_ONCE", 7)
    method, seen = CoCoOp(small_clip, NAMES), []
    assert method.images_at_once == 2
    whole = method.logits(features(5)).argmax(dim=1)
    inner = method.text_features
    method.text_features = lambda images: seen.append(len(images)) or inner(images)
    assert predict(method, features(5))["predicted"].tolist() == whole.tolist()
    assert seen == [2, 2, 1]
    module = LitClassifier(method, SGD, epochs=1)
    module.log = lambda *_, **__: None
    module.validation_step({"image_features": features(5), "label": torch.zeros(5, dtype=torch.long)}, 0)
    assert seen == [2, 2, 1] * 2


# TCP


def test_a_layer_that_the_tower_does_not_have_is_refused(small_clip):
    assert TCP(small_clip, NAMES, template="a {}.").layer == 2, "of 4, as the authors' 8 of 12"
    with pytest.raises(CoopError, match=r"method\.layer=8: the text tower of small has 4 layers; choose from 1 to 3"):
        TCP(small_clip, NAMES, template="a {}.", layer=8)


def test_prompts_of_each_class_are_what_reaches_its_features(small_clip):
    method = TCP(small_clip, NAMES, template="a {}.", layer=3)
    before = method().detach()
    with torch.no_grad():
        method.meta_net[2].bias.add_(torch.linspace(-1, 1, 512))
    assert (method() - before).abs().max() > 1e-3
    method.loss(batch())[0].backward()
    assert all(p.grad.abs().max() > 0 for p in method.parameters())


def test_another_data_set_is_tested_with_its_own_templates(small_clip):
    cfg = composed("method=tcp", "dataset=imagenet")
    method = build_method(cfg.method, small_clip, NAMES)
    with torch.no_grad():
        method.meta_net[2].bias.add_(0.1 * torch.randn(512))
    pets = Splits([], [], [Item("x", 0, "Abyssinian")], ["Abyssinian", "pug"])
    moved = for_target(method, cfg.method, Target("oxford_pets", composed("dataset=oxford_pets").dataset, pets))
    wanted = TCP(small_clip, ["Abyssinian", "pug"], template="a photo of a {}, a type of pet.",
                 prompt_template="X X X X {}, a type of pet.")  # fmt: skip
    wanted.load_state_dict(method.state_dict())
    assert torch.equal(moved(), wanted())
    own = composed("method=tcp", "dataset=imagenet", "method.prompt_template='X X X X my {}.'").method
    assert with_published(own, "oxford_pets").prompt_template == "X X X X my {}."
    assert with_published(own, "oxford_pets").template == "a photo of a {}, a type of pet."
    assert with_published(own, "elsewhere") == OmegaConf.create(OmegaConf.to_container(own, resolve=True))


# PLOT


def test_transport_plans_have_uniform_marginals_and_the_stopping_rule_waits_for_nothing():
    similarity = torch.rand(5, 3, 9, 4, generator=torch.Generator().manual_seed(0))
    plan, made = sinkhorn(similarity, eps=0.1, max_iter=1000, threshold=1e-6)
    assert torch.allclose(plan.sum(dim=-1), torch.full((5, 3, 9), 1 / 9), atol=1e-5)
    assert torch.allclose(plan.sum(dim=-2), torch.full((5, 3, 4), 1 / 4), atol=1e-5)
    assert 5 < made < 1000


def test_going_on_without_changing_anything_is_stopping(monkeypatch):
    similarity = torch.rand(2, 3, 9, 4, generator=torch.Generator().manual_seed(1))
    stopped, made = sinkhorn(similarity, eps=0.1, max_iter=100, threshold=0.01)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)  # then no value is asked for, as on a GPU
    whole, counted = sinkhorn(similarity, eps=0.1, max_iter=100, threshold=0.01)
    assert torch.equal(stopped, whole)
    assert made == counted < 100


def test_the_global_term_is_that_of_the_mean_raw_text_features(small_clip):
    method = PLOT(small_clip, NAMES, n_prompts=2, n_ctx=4, global_term=True)
    plain = PLOT(small_clip, NAMES, n_prompts=2, n_ctx=4)
    plain.load_state_dict(method.state_dict())
    tokens = features(5 * 4).view(4, 5, 64)
    assert method().norm(dim=-1).std() > 0.01, "raw"
    mean = normalize(method().mean(dim=0))
    wanted = plain.logits(tokens) + small_clip.logit_scale.exp() * tokens[:, 0] @ mean.T
    assert torch.allclose(method.logits(tokens), wanted, atol=1e-4)


def test_prompts_of_plot_differ_from_the_start(small_clip):
    ctx = PLOT(small_clip, NAMES).ctx.detach()
    assert ctx.shape == (4, 16, 128)
    assert ctx.std() == pytest.approx(0.02, rel=0.05)
    assert (ctx[0] - ctx[1]).abs().min() > 0
