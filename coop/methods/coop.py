"""CoOp's PromptLearner: M context vectors, learned, around the class name (CoOp, section 3.2)."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, Literal

import torch
from open_clip import SimpleTokenizer
from torch import Tensor, nn

from coop.clip.backbone import FrozenCLIP, at_least_float32
from coop.clip.deep_prompts import DeepPrompts
from coop.clip.templates import Template
from coop.clip.text.plain import prompt_embeddings
from coop.errors import CoopError
from coop.methods.base import Count, Method
from coop.system.validation import Rule

DEFAULT_N_CTX = 16
INIT_STD = 0.02
ContextLength = Annotated[
    int,  # no text encoder has 1024 tokens; what fits into this one is known once it is loaded
    Rule(lambda n: 1 <= n <= 1024, "must be at least 1 and fit into the text encoder, 77 tokens with CLIP's"),
]
Words = Annotated[
    str,
    Rule(lambda words: bool(words.replace("_", " ").strip()), "give words to start from, or null for a random start"),
]


class PromptLearner(Method):
    """Prompts `[SOS] v1 .. vM CLASS . [EOS]` whose vectors v are the only parameters.

    Attributes:
        ctx: the context, (M, D); (K, M, D) if class-specific. Always at least float32.

    Args:
        n_ctx: M; 16 if neither it nor `ctx_init` is given.
        ctx_init: words whose token embeddings the context starts from; their number of tokens is M. Otherwise the
            context is drawn from N(0, 0.02^2).
        class_specific: a context of its own for every class (the paper's CSC) instead of one for all.
        class_token_position: where the class name stands; "middle" puts M // 2 vectors before it and the rest after,
            "front" all after. The final "." stays last.
        checkpoint: recompute activations in the backward pass, layer by layer, to save memory.
        class_chunk: encode this many classes at a time, with the exact gradient, to bound memory.
        prompt_template: the whole prompt, with `{}` where the class name goes; its first M tokens give way to the
            context and the others stay ("X X X X {}, a type of pet."). "X .. X {}." if not given.

    Raises:
        CoopError: impossible options, or a prompt that does not fit into the context length.
    """

    #: What a subclass fixes of the options, and their only values.
    fixed: Mapping[str, Any] = {}
    #: Whether of `ctx_init` the first n_ctx tokens are learned while the others stay where they are.
    words_stay = False

    def __init__(
        self,
        clip: FrozenCLIP,
        classnames: Sequence[str],
        n_ctx: ContextLength | None = None,
        ctx_init: Words | None = None,
        class_specific: bool = False,
        class_token_position: Literal["end", "middle", "front"] = "end",
        checkpoint: bool = False,
        class_chunk: Count | None = None,
        prompt_template: Template | None = None,
    ):
        super().__init__(clip, classnames)
        self.class_specific, self.class_token_position = class_specific, class_token_position
        self.transfers_to_other_classes = not class_specific
        self.deep: DeepPrompts | None = None  # a subclass's
        copies = (len(classnames),) if class_specific else ()
        if ctx_init:
            words = word_context(clip, ctx_init)
            if self.words_stay:
                words = words[:n_ctx]
                prompt_template = prompt_template or f"{ctx_init.replace('_', ' ')} {{}}."
            elif n_ctx is not None and n_ctx != len(words):
                raise CoopError(_conflict(n_ctx, ctx_init, len(words)))
            start = words.expand(*copies, *words.shape).clone()
        else:
            start = at_least_float32(torch.empty(*copies, n_ctx or DEFAULT_N_CTX, clip.text_width, dtype=clip.dtype))
            nn.init.normal_(start, std=INIT_STD)
        self.ctx = nn.Parameter(start)
        ids, slots = _layout(clip, self.classnames, n_ctx or self.n_ctx, class_token_position, prompt_template)
        _check_lengths(clip, self.classnames, ids, self.n_ctx, ctx_init)
        self.register_buffer("ids", clip.pad(ids), persistent=False)
        self.register_buffer("slots", clip.pad(slots, -1), persistent=False)
        # Of `PromptEncoder`; read at the first use, until when a subclass may change them.
        self.encoding = {"class_specific": class_specific, "checkpoint": checkpoint, "class_chunk": class_chunk}

    @classmethod
    def check(cls, **options) -> None:
        for key, only in cls.fixed.items():
            if options.get(key, only) != only:
                said = {None: "null", False: "false"}.get(only, only)
                raise CoopError(f"method.{key}={options[key]}: {cls.__name__} has only {key}={said}")
        placed = options.get("prompt_template") or (options.get("ctx_init") if cls.words_stay else None)
        position = options.get("class_token_position", "end")
        if placed and position != "end":
            raise CoopError(
                f'method.class_token_position={position} with the prompt "{placed}": it says where the class name '
                'stands; leave the position at "end"'
            )

    @classmethod
    def check_words(
        cls, tokenizer: SimpleTokenizer, n_ctx: int | None = None, ctx_init: str | None = None, **others
    ) -> None:
        if ctx_init and n_ctx is not None and not cls.words_stay:
            tokens = len(tokenizer.encode(ctx_init.replace("_", " ")))
            if n_ctx != tokens:
                raise CoopError(_conflict(n_ctx, ctx_init, tokens))

    @property
    def n_ctx(self) -> int:
        """M, the number of context vectors of a prompt."""
        return self.ctx.shape[-2]

    @cached_property
    def encoder(self) -> nn.Module:
        """The text encoder; made at the first use, when it is known whether several processes share the classes."""
        with torch.inference_mode(False):  # the first use may be Lightning's validation
            ids, slots = self.ids.cpu(), self.slots.cpu()
            return self.clip.prompt_encoder(ids, slots, **self.encoding)

    def encode_image(self, images: Tensor) -> Tensor:
        if self.deep is None or not self.needs_images:
            return super().encode_image(images)
        return self.deep.encode_image(images, self.ctx, self.encoding["checkpoint"])

    def forward(self) -> Tensor:
        """text_features (K, E), L2-normalized, differentiable in ctx."""
        return self.encoder(self.ctx, None if self.deep is None else self.deep.of_text())

    def embeddings(self) -> tuple[Tensor, Tensor]:
        """The prompts as the paper writes them: token embeddings (K, L, D), differentiable in ctx, and ids (K, L).

        At the places of the context vectors the ids hold a filler word.
        """
        return prompt_embeddings(self.clip.model, self.ids, self.slots, self.ctx), self.ids


def _layout(
    clip: FrozenCLIP, names: list[str], n_ctx: int, position: str, template: str | None
) -> tuple[list[list[int]], list[list[int]]]:
    """Each prompt's token ids, and the context vectors that replace them (-1: none; so are those after the last).

    For "middle" and "front" the class name's tokens change places with context vectors. How many: as many as the name
    has when tokenized alone, as in the original; inside the prompt it can differ, since the tokenizer merges ")."
    """
    first, special = _special_tokens(clip)
    before = {"end": n_ctx, "middle": n_ctx // 2, "front": 0}[position]
    if template:
        _check_room(clip, template, n_ctx, special)
    else:
        template = " ".join(["X"] * n_ctx) + " {}."
    ids, slots = [], []
    whole = clip.token_ids([template.replace("{}", name) for name in names])
    for alone, tokens in zip(clip.token_ids(names), whole, strict=True):
        cut = 0 if position == "end" else len(alone) - special
        fillers, rest = tokens[first : first + n_ctx], tokens[first + n_ctx :]
        ids.append(tokens[:first] + fillers[:before] + rest[:cut] + fillers[before:] + rest[cut:])
        slots.append([-1] * first + list(range(before)) + [-1] * cut + list(range(before, n_ctx)))
    return ids, slots


def _check_room(clip: FrozenCLIP, template: str, n_ctx: int, special: int) -> None:
    (before,) = clip.token_ids([template.partition("{}")[0]])
    if n_ctx > (room := len(before) - special):
        raise CoopError(
            f'method.prompt_template="{template}": {room} tokens stand before the class name, where {n_ctx} context '
            f"vectors have to go (method.n_ctx={n_ctx}); put more X before {{}}, or lower method.n_ctx"
        )


def _special_tokens(clip: FrozenCLIP) -> tuple[int, int]:
    """How many special tokens stand before a text, and in all: 1 and 2 for CLIP's tokenizer, 0 and 1 for SigLIP's."""
    one, other = clip.token_ids(["X", "Y"])
    first = next(index for index, (a, b) in enumerate(zip(one, other, strict=True)) if a != b)
    return first, len(one) - 1


def _check_lengths(clip: FrozenCLIP, names: list[str], ids: list[list[int]], n_ctx: int, ctx_init: str | None) -> None:
    length, name = max((len(row), name) for row, name in zip(ids, names, strict=True))
    if length > clip.context_length:
        fits = n_ctx - length + clip.context_length
        fewer = f"give method.ctx_init at most {fits} tokens" if ctx_init else f"lower method.n_ctx to at most {fits}"
        fix = fewer if fits > 0 else "shorten the class name"
        raise CoopError(
            f'the prompt of class "{name}" has {length} tokens, {n_ctx} of them context vectors; the text tower of '
            f"{clip.name} takes {clip.context_length}: {fix}"
        )


def word_context(clip: FrozenCLIP, words: str) -> Tensor:
    """Token embeddings (M, D) of words, one row for each of their M tokens, at least float32."""
    (ids,) = clip.token_ids([words.replace("_", " ")])
    first, special = _special_tokens(clip)
    ids = ids[first : first + len(ids) - special]
    with torch.no_grad():
        weight = clip.token_embedding.weight
        return at_least_float32(weight[torch.tensor(ids, device=weight.device)]).cpu()


def _conflict(n_ctx: int, words: str, tokens: int) -> str:
    return (
        f'method.n_ctx={n_ctx} with method.ctx_init="{words}": the words have {tokens} tokens, which sets n_ctx; '
        "leave n_ctx out"
    )
