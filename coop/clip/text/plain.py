"""The text encoder's own forward on prompts: every token, whatever the kind of encoder."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn

from coop.clip.snapshot import Parts
from coop.errors import CoopError

DeepPrompts = Mapping[int, Tensor]


def prompt_embeddings(model: nn.Module, ids: Tensor, slots: Tensor, ctx: Tensor) -> Tensor:
    """The prompts as the paper writes them (Zhou et al., IJCV 2022, eqs. 2 and 3): token embeddings, context put in.

    Args:
        model: an open_clip model.
        ids: (K, L) token ids; those at context positions are ignored.
        slots: (K, L) index of the context vector at each position, -1 for a constant token.
        ctx: (M, D), or (K, M, D) with a context per class.

    Returns:
        (K, L, D) embeddings before the positional embedding, in the embedding's dtype, differentiable in ctx.
    """
    weight = token_embedding(model).weight
    return _put_in(F.embedding(ids.to(weight.device), weight), slots, ctx)


def _put_in(x: Tensor, slots: Tensor, vectors: Tensor) -> Tensor:
    """x (K, L', D), L' >= L, with `vectors` (n, D) or (K, n, D) at the positions of slots (K, L) 0 to n - 1."""
    slots = F.pad(slots.to(x.device), (0, x.shape[1] - slots.shape[1]), value=-1)[:, :, None]
    vectors = vectors.to(x).expand(len(x), -1, -1)
    n = vectors.shape[1]
    chosen = vectors.gather(1, slots.clamp(0, n - 1).expand(-1, -1, x.shape[-1]))
    return torch.where((slots >= 0) & (slots < n), chosen, x)


def plain_text_features(model: nn.Module, ids: Tensor, embeddings: Tensor) -> Tensor:
    """The tower's own forward on prompt embeddings.

    A hook on the token embedding returns `embeddings` instead of looking `ids` up, so this works for every tower of
    open_clip; the ids still tell the tower where [EOS] and padding are.

    Args:
        model: an open_clip model.
        ids: (K, L) token ids.
        embeddings: (K, L, D) in place of their token embeddings.

    Returns:
        (K, E) text features as the tower gives them, not normalized.
    """
    embedding = token_embedding(model)
    hook = embedding.register_forward_hook(lambda module, inputs, output: embeddings)
    try:
        return model.encode_text(ids.to(embedding.weight.device), normalize=False)
    finally:
        hook.remove()


@contextmanager
def deep_prompts(model: nn.Module, slots: Tensor, deep: DeepPrompts) -> Iterator[None]:
    """Let the text encoder's own forward replace states by deep prompts, for as long as the context lasts."""
    if not deep:
        yield
        return
    blocks, batch_first = text_blocks(model), getattr(getattr(model, "text", model).transformer, "batch_first", True)
    own = {layer: blocks[layer] for layer in deep}
    try:
        for layer, vectors in deep.items():
            blocks[layer] = _WithPrompts(own[layer], slots, vectors, batch_first)
        yield
    finally:
        for layer, block in own.items():
            blocks[layer] = block


class _WithPrompts(nn.Module):
    """A residual block with deep prompts put in. A hook would be gone when the backward pass recomputes the layer."""

    def __init__(self, block: nn.Module, slots: Tensor, vectors: Tensor, batch_first: bool):
        super().__init__()
        self.block, self.slots, self.vectors, self.batch_first = block, slots, vectors, batch_first

    def forward(self, x: Tensor, *args, **kwargs) -> Tensor:
        x = _put_in(x if self.batch_first else x.transpose(0, 1), self.slots, self.vectors)
        return self.block(x if self.batch_first else x.transpose(0, 1).contiguous(), *args, **kwargs)


def text_blocks(model: nn.Module) -> nn.ModuleList:
    """The residual blocks of an open_clip model's text encoder.

    Raises:
        CoopError: it has none, so that nothing can be put in front of its layers.
    """
    tower = getattr(model, "text", model)
    blocks = getattr(getattr(tower, "transformer", None), "resblocks", None)
    if not blocks:
        raise CoopError(
            f"deep text prompts: the text encoder of this backbone ({type(tower).__name__}) has no residual blocks of "
            "open_clip (transformer.resblocks) to put them in front of; use a backbone that has them, such as "
            "backbone=vit_b16, or a method with prompts at the input only"
        )
    return blocks


def token_embedding(model: nn.Module) -> nn.Module:
    """The embedding of token ids of an open_clip model's text encoder."""
    text = getattr(model, "text", model)
    return text.token_embedding if hasattr(text, "token_embedding") else text.transformer.get_input_embeddings()


def project(tower: nn.Module, x: Tensor) -> Tensor:
    """The text projection, (.., D) to (.., E), in whichever form the tower has it."""
    if tower.text_projection is None:
        return x
    return tower.text_projection(x) if isinstance(tower.text_projection, nn.Linear) else x @ tower.text_projection


def text_parts(model: nn.Module) -> Parts:
    """All of an open_clip model that text features depend on, as `Snapshot` takes it."""
    modules = [child for name, child in model.named_children() if name not in ("visual", "text_decoder")]
    own = [*model.named_parameters(recurse=False), *model.named_buffers(recurse=False)]
    return modules, [tensor for name, tensor in own if not name.startswith("logit_")]


class PlainTower:
    """Every token, by the model's own forward."""

    def __init__(
        self, model: nn.Module, ids: Tensor, slots: Tensor, class_specific: bool, chunk: int, checkpoint: bool
    ):
        if checkpoint:
            _checkpoint_layers(model)
        self.model, self.class_specific, self.tokens = model, class_specific, ids.numel()
        self.prompts = list(zip(ids.split(chunk), slots.split(chunk), strict=True))
        self.sizes = [len(ids) for ids, _ in self.prompts]

    def forget(self) -> None:
        """Nothing is kept."""

    def chunks(self, class_specific_deep: bool = False) -> list[Callable[[Tensor, DeepPrompts], Tensor]]:
        """For each chunk of prompts, its features as a function of contexts and deep prompts."""
        return [partial(self._encode, ids, slots) for ids, slots in self.prompts]

    def _encode(self, ids: Tensor, slots: Tensor, ctx: Tensor, deep: DeepPrompts) -> Tensor:
        """(G, M, D), or (G, K, M, D) with a context per prompt, to (G, K, E)."""
        contexts, prompts = len(ctx), len(ids)
        ctx = ctx if self.class_specific else ctx[:, None].expand(-1, prompts, -1, -1)
        ids, slots = ids.repeat(contexts, 1), slots.repeat(contexts, 1)
        embeddings = prompt_embeddings(self.model, ids, slots, ctx.flatten(0, 1))
        deep = {layer: v.repeat(contexts, 1, 1) if v.ndim == 3 else v for layer, v in deep.items()}
        with deep_prompts(self.model, slots, deep):
            features = plain_text_features(self.model, ids, embeddings)
        return features.unflatten(0, (contexts, prompts)).to(ctx.dtype)


def _checkpoint_layers(model: nn.Module) -> None:
    """Let the model's own forward recompute its layers in the backward pass, if it can."""
    transformer = getattr(getattr(model, "text", model), "transformer", None)
    blocks = getattr(transformer, "resblocks", [None])
    if not all(type(block) is ResidualAttentionBlock for block in blocks):
        raise CoopError(
            f"method.checkpoint=true: the text tower ({type(transformer).__name__}) cannot recompute its layers one by "
            "one; use method.checkpoint=false method.class_chunk=N, which bounds the memory of any tower"
        )
    transformer.grad_checkpointing = True
