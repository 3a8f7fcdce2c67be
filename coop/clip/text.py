"""The text tower run on prompts: exactly the tower's own result, without the work that cannot change it.

The plain way (`plain_text_features`) puts the context vectors among the token embeddings of K prompts and runs the
tower on all K * L tokens, L = 77. `PromptEncoder` computes the same numbers from a fraction of these tokens, because
CLIP's text tower is causal (the state of a token depends on the tokens before it and on nothing else), works on each
token alone outside of attention, and is frozen:

1. Only the [EOS] state is used, so no token after [EOS] is computed.
2. Prompts that begin with the same tokens and the same context vectors have the same states there. A shared context
   at the end makes [SOS] v1 .. vM this common beginning (the trunk): it runs once, and its keys and values serve every
   prompt. Its gradient is the sum over the prompts, as autograd forms it. Likewise the first words of a few class names
   that they have in common.
3. What stands before a prompt's first context vector (the class name in front of the context, [SOS]) is the same in
   every step: its keys and values are computed once, ever.
4. The remaining tokens, each prompt's own, form one flat batch without padding. Only attention needs to know which
   prompt a token belongs to: there, whole prompts lie side by side in rows (`coop.clip.plan`), and a mask lets a token
   see the trunk, its own prompt's constants and its own prompt's tokens up to itself. These are the tokens before it.
5. Of the last layer only [EOS] is computed; the other tokens give their keys and values.
6. In the first layer, queries, keys and values of constant tokens are constant.

No step approximates anything; only the order of floating-point sums differs. With open_clip's 1000 ImageNet names and
16 shared context vectors at the end, 4021 of 77 000 tokens are computed (`PromptEncoder.tokens_computed`, `.tokens`).

Where a tower's structure differs from open_clip's causal transformer (SigLIP attends both ways, Hugging Face towers
have their own blocks, CoCa appends a class token), `PromptEncoder` runs the tower's own forward, says so in the log,
and gives the same features at the plain cost. So it does where modules have hooks or parametrizations, are replaced
(by LoRA's, say) or trained, as long as that lasts.

Letters: K prompts (classes), L tokens, M context vectors, D width, E joint width, P trunk tokens, N rows of R tokens.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from open_clip.transformer import (
    LayerNorm,
    LayerNormFp32,
    LayerScale,
    QuickGELU,
    ResidualAttentionBlock,
    TextTransformer,
    Transformer,
)
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.utils.checkpoint import checkpoint as recompute_in_backward

from coop.clip.linear import FrozenLinear
from coop.clip.plan import Plan, as_symbols, build_plan, common_beginning, distinct_tokens
from coop.clip.snapshot import Parts, Snapshot, hooked
from coop.errors import CoopError

log = logging.getLogger("coop")

KeysValues = tuple[Tensor, Tensor]


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
    ids, slots = ids.to(weight.device), slots.to(weight.device)
    ctx = ctx.to(weight).expand(len(ids), -1, -1)
    put_in = ctx.gather(1, slots.clamp(min=0)[:, :, None].expand(-1, -1, ctx.shape[-1]))
    return torch.where((slots >= 0)[:, :, None], put_in, F.embedding(ids, weight))


def plain_text_features(model: nn.Module, ids: Tensor, embeddings: Tensor) -> Tensor:
    """The tower's own forward on prompt embeddings.

    A hook on the token embedding returns `embeddings` instead of looking `ids` up, so this works for every tower of
    open_clip; the ids still tell the tower where [EOS] and padding are.

    Args:
        model: an open_clip model.
        ids: (K, L) token ids.
        embeddings: (K, L, D) in place of their token embeddings.

    Returns:
        (K, E) text features as the tower gives them, not normalised.
    """
    embedding = token_embedding(model)
    hook = embedding.register_forward_hook(lambda module, inputs, output: embeddings)
    try:
        return model.encode_text(ids.to(embedding.weight.device), normalize=False)
    finally:
        hook.remove()


def token_embedding(model: nn.Module) -> nn.Module:
    """The embedding of token ids of an open_clip model's text tower."""
    text = getattr(model, "text", model)
    return text.token_embedding if hasattr(text, "token_embedding") else text.transformer.get_input_embeddings()


def text_parts(model: nn.Module) -> Parts:
    """All of an open_clip model that text features depend on, as `Snapshot` takes it."""
    modules = [child for name, child in model.named_children() if name not in ("visual", "text_decoder")]
    own = [*model.named_parameters(recurse=False), *model.named_buffers(recurse=False)]
    return modules, [tensor for name, tensor in own if not name.startswith("logit_")]


class PromptEncoder(nn.Module):
    """Text features of K prompts as a function of their context vectors.

    It holds no parameter and no buffer: the model's weights are read where they are, in the form they have at each
    call, and the model is kept out of the module tree (whoever owns it registers it once). What does not depend on
    the context is computed at the first call, and again once the tower is no longer what it was then; each call looks
    (`coop.clip.snapshot.Snapshot` says what is seen when). Calls without gradient look at every weight in full on a
    CPU, and keep nothing on an accelerator, where looking would cost more.

    Args:
        model: an open_clip model, frozen, in eval mode.
        ids: (K, L) token ids with [SOS], [EOS] and padding; any id below [EOS]'s where a context vector goes.
        slots: (K, L) index of the context vector at each position, -1 for a constant token.
        class_specific: whether each prompt has its own context vectors.
        checkpoint: recompute each layer's activations in the backward pass instead of keeping them.
        class_chunk: encode so many prompts at a time and recompute each chunk in the backward pass, so that one
            chunk's activations exist at a time. The gradient is that of all prompts together.

    Attributes:
        tokens: K * L, what the plain way computes.
        tokens_computed: what a step computes here.

    Raises:
        CoopError: a chunk of less than one class, or `checkpoint` for a tower that cannot.
    """

    def __init__(
        self,
        model: nn.Module,
        ids: Tensor,
        slots: Tensor,
        class_specific: bool,
        *,
        checkpoint: bool = False,
        class_chunk: int | None = None,
    ):
        super().__init__()
        if class_chunk is not None and class_chunk < 1:
            raise CoopError(
                f"method.class_chunk={class_chunk}: the number of classes encoded at a time must be at least 1; "
                "leave it out (null) to encode all classes at once"
            )
        self.class_specific, self.chunk = class_specific, class_chunk or len(ids)
        self._model = (model,)
        self._prompts = (ids.cpu(), slots.cpu(), class_specific, self.chunk, checkpoint)
        self._snapshot: Snapshot | None = None
        self.tower, self.tokens, self._reason = None, ids.numel(), None
        self._choose_tower()

    def _choose_tower(self) -> None:
        """The way that is exact for the model as it is now, with nothing kept of what it was."""
        reason = why_plain(*self._model)
        tower = PlainTower if reason else PackedTower
        if type(self.tower) is tower and reason == self._reason:
            self.tower.forget()
            return
        self._reason, self.tower = reason, tower(*self._model, *self._prompts)
        self.tokens_computed = self.tower.tokens
        log.info(
            "Text encoder: %d of %d tokens computed per step%s.",
            self.tokens_computed,
            self.tokens,
            f"; the tower's own forward is used, because {reason}" if reason else "",
        )

    def _look_at_model(self) -> None:
        """See to it that `tower` is right for the model as it is now."""
        thorough = not torch.is_grad_enabled()
        on_cpu = token_embedding(*self._model).weight.device.type == "cpu"
        if self._snapshot and self._snapshot.holds(thorough):
            if thorough and not on_cpu:
                self.tower.forget()
            return
        with torch.inference_mode(False):  # the first use may be Lightning's validation
            self._choose_tower()
        table, (ids, slots, *_) = token_embedding(*self._model).weight, self._prompts
        self._snapshot = Snapshot(partial(text_parts, *self._model), table, ids[slots < 0].unique())

    def forward(self, ctx: Tensor) -> Tensor:
        """Context (M, D), or (K, M, D) if class-specific, to text features (K, E) in ctx's dtype, not normalised."""
        self._look_at_model()
        chunks = self.tower.chunks()
        if len(chunks) == 1:
            return chunks[0](ctx)
        parts = ctx.split(self.chunk) if self.class_specific else [ctx] * len(chunks)
        return torch.cat([_recomputed(chunk, part) for chunk, part in zip(chunks, parts, strict=True)])


def _recomputed(function, *args):
    """Call without keeping activations for the backward pass, which calls again."""
    if not torch.is_grad_enabled():
        return function(*args)
    return recompute_in_backward(function, *args, use_reentrant=False, preserve_rng_state=False)


def _called(function, *args):
    return function(*args)


class PlainTower:
    """Every token, by the tower's own forward."""

    def __init__(
        self, model: nn.Module, ids: Tensor, slots: Tensor, class_specific: bool, chunk: int, checkpoint: bool
    ):
        if checkpoint:
            _checkpoint_layers(model)
        self.model, self.tokens = model, ids.numel()
        self.prompts = list(zip(ids.split(chunk), slots.split(chunk), strict=True))

    def forget(self) -> None:
        """Nothing is kept."""

    def chunks(self) -> list[Callable[[Tensor], Tensor]]:
        """For each chunk of prompts, its features as a function of its context vectors."""
        return [partial(self._encode, ids, slots) for ids, slots in self.prompts]

    def _encode(self, ids: Tensor, slots: Tensor, ctx: Tensor) -> Tensor:
        """(M, D), or (K, M, D) with a context per prompt, to (K, E)."""
        embeddings = prompt_embeddings(self.model, ids, slots, ctx)
        return plain_text_features(self.model, ids, embeddings).to(ctx.dtype)


def _checkpoint_layers(model: nn.Module) -> None:
    """Let the tower's own forward recompute its layers in the backward pass, if it can."""
    transformer = getattr(getattr(model, "text", model), "transformer", None)
    blocks = getattr(transformer, "resblocks", [None])
    if not all(type(block) is ResidualAttentionBlock for block in blocks):
        raise CoopError(
            f"method.checkpoint=true: the text tower ({type(transformer).__name__}) cannot recompute its layers one by "
            "one; use method.checkpoint=false method.class_chunk=N, which bounds the memory of any tower"
        )
    transformer.grad_checkpointing = True


@dataclass(frozen=True)
class Constants:
    """A chunk's plan on the tower's device, with all that does not depend on the context.

    Attributes:
        x: (U, D) input to the first layer of each distinct constant token.
        qkv: (U, 3D) its query, key and value there.
        index: (T,) which of them each own token is; anything for a learnt token.
        learnt: (2, V) prompt (0 if the context is shared) and slot of each distinct learnt token.
        learnt_position: (V, D) its positional embedding.
        learnt_places: (W,) which of the own tokens are learnt, and
        learnt_index: (W,) which of the distinct learnt tokens they are.
        masks: for each stack, (N, 1, R, P + C + R), see `coop.clip.plan.Layout`.
        lengths: for each stack, N * R.
        queries: (T',) tokens whose state the last layer computes, see `coop.clip.plan.Plan`.
        query_masks: `masks` for these, (N, 1, Q, P + C + R).
        seen: for each layer, keys and values of the trunk (1, P, D), None if it is one of the stacks; and for each
            stack those of its constants (N, C, D).
        pooled: (K,) which of the queries is each prompt's.
    """

    x: Tensor
    qkv: Tensor
    index: Tensor
    learnt: Tensor
    learnt_position: Tensor
    learnt_places: Tensor
    learnt_index: Tensor
    masks: list[Tensor]
    lengths: list[int]
    queries: Tensor
    query_masks: list[Tensor]
    seen: list[tuple[KeysValues | None, list[KeysValues | None]]]
    pooled: Tensor


class PackedTower:
    """Steps 1 to 6 of the module's docstring, for a tower of open_clip's causal blocks."""

    def __init__(
        self, model: nn.Module, ids: Tensor, slots: Tensor, class_specific: bool, chunk: int, checkpoint: bool
    ):
        self.tower = getattr(model, "text", model)
        self.blocks = list(self.tower.transformer.resblocks)
        self._layers: list[Layer] = []
        self.class_specific, self.checkpoint = class_specific, checkpoint
        end = pooled_positions(self.tower, ids)
        symbols = as_symbols(ids, slots, class_specific)
        trunk = common_beginning(symbols, end)
        plans = [build_plan(*prompts, trunk) for prompts in zip(symbols.split(chunk), end.split(chunk), strict=True)]
        self.prompts = list(zip(ids.split(chunk), slots.split(chunk), plans, strict=True))
        self.tokens = sum(len(plan.own.prompts) for plan in plans)
        self._constants: list[Constants] = []

    def forget(self) -> None:
        """Compute the constants anew at the next call: the model is no longer what it was."""
        self.blocks, self._layers, self._constants = list(self.tower.transformer.resblocks), [], []

    def chunks(self) -> list[Callable[[Tensor], Tensor]]:
        """For each chunk of prompts, its features as a function of its context vectors."""
        return [partial(self._encode, constants) for constants in self.constants()]

    def _encode(self, c: Constants, ctx: Tensor) -> Tensor:
        """(M, D), or (K, M, D) with a context per prompt, to (K, E)."""
        run = _recomputed if self.checkpoint else _called
        x, qkv = self._first_inputs(c, ctx)
        for i in range(len(self._layers) - 1):
            x = run(self._layer, i, x, qkv if i == 0 else None, c)
        x = run(self._last_layer, x, c)
        return project(self.tower, self.tower.ln_final(x)).to(ctx.dtype)

    def _first_inputs(self, c: Constants, ctx: Tensor) -> tuple[Tensor, Tensor]:
        """Input (T, D) of the first layer, and its queries, keys and values (T, 3D)."""
        prompt, slot = c.learnt
        learnt = F.embedding(prompt * ctx.shape[-2] + slot, ctx.reshape(-1, ctx.shape[-1])).to(c.x.dtype)
        learnt = learnt + c.learnt_position
        learnt_qkv = self._layers[0].queries_keys_values(learnt).to(c.qkv.dtype)
        x, qkv = c.x.index_select(0, c.index), c.qkv.index_select(0, c.index)
        x.index_copy_(0, c.learnt_places, F.embedding(c.learnt_index, learnt))
        qkv.index_copy_(0, c.learnt_places, F.embedding(c.learnt_index, learnt_qkv))
        return x, qkv

    def _layer(self, i: int, x: Tensor, qkv: Tensor | None, c: Constants) -> Tensor:
        """Layer i on the own tokens (T, D)."""
        layer = self._layers[i]
        q, kv = apart(layer.queries_keys_values(x) if qkv is None else qkv)
        return layer.residual_and_mlp(x, attend(layer.heads, q, kv, c.lengths, c.masks, *c.seen[i]))

    def _last_layer(self, x: Tensor, c: Constants) -> Tensor:
        """The last layer on the own tokens (T, D), as far as the pooled tokens (K, D) need it."""
        layer = self._layers[-1]
        q, kv = layer.few_queries(x, c.queries)
        attended = attend(layer.heads, q, kv, c.lengths, c.query_masks, *c.seen[-1])
        return layer.residual_and_mlp(x.index_select(0, c.queries[c.pooled]), attended.index_select(0, c.pooled))

    def constants(self) -> list[Constants]:
        """Each chunk's constants, for the weights as they were when this began or `forget` was last called."""
        if not self._constants:
            # Not as inference tensors (a validation may come first, and training could not use them), nor under the
            # caller's autocast: no result may depend on which call happened to be the first.
            device = self.tower.token_embedding.weight.device
            with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
                self._layers = [*map(Layer, self.blocks[:-1]), LastLayer(self.blocks[-1])]
                self._constants = [self._compute_constants(*prompts) for prompts in self.prompts]
        return self._constants

    def _compute_constants(self, ids: Tensor, slots: Tensor, plan: Plan) -> Constants:
        """The constants of one chunk."""
        device = self.tower.token_embedding.weight.device
        constants, learnt, index, is_learnt = distinct_tokens(plan.own, ids, slots, self.class_specific)
        x = self._embed(*constants)
        return Constants(
            x=x,
            qkv=self._layers[0].queries_keys_values(x),
            index=index.where(~is_learnt, 0).to(device),
            learnt=learnt[:2].to(device),
            learnt_position=self._positional(learnt[2]),
            learnt_places=is_learnt.nonzero()[:, 0].to(device),
            learnt_index=index[is_learnt].to(device),
            masks=[mask[:, None].to(device) for mask in plan.own.masks],
            lengths=[rows.prompt.numel() for rows in plan.own.stacks],
            queries=plan.queries.to(device),
            query_masks=[mask[:, None].to(device) for mask in plan.query_masks],
            seen=self._compute_seen(ids, plan),
            pooled=plan.pooled.to(device),
        )

    def _compute_seen(self, ids: Tensor, plan: Plan) -> list[tuple[KeysValues | None, list[KeysValues | None]]]:
        """`Constants.seen`: what runs through the tower once."""
        layout = plan.constants
        if not layout.stacks:
            return [(None, [None] * len(plan.own.stacks))] * len(self.blocks)
        x = self._embed(ids[layout.prompts, layout.positions], layout.positions)
        masks = [mask[:, None].to(x.device) for mask in layout.masks]
        lengths = [rows.prompt.numel() for rows in layout.stacks]
        trunk, seen = layout.stacks[0].prompt.numel(), []
        for layer in self._layers:
            q, kv = apart(layer.queries_keys_values(x))
            k, v = kv.chunk(2, dim=-1)
            constants = [(k[places], v[places]) for places in plan.constants_seen]
            seen.append(((k[None, :trunk].clone(), v[None, :trunk].clone()), constants))
            x = layer.residual_and_mlp(x, attend(layer.heads, q, kv, lengths, masks, None, [None] * len(masks)))
        return seen

    def _embed(self, ids: Tensor, positions: Tensor) -> Tensor:
        """Input (T, D) of the first layer for constant tokens, rounded as open_clip does."""
        tokens = self.tower.token_embedding(ids.to(self.tower.token_embedding.weight.device))
        return tokens.to(self.blocks[0].get_weight_dtype()) + self._positional(positions)

    def _positional(self, positions: Tensor) -> Tensor:
        """Positional embeddings (T, D)."""
        table = self.tower.positional_embedding
        return table[positions.to(table.device)].to(self.blocks[0].get_weight_dtype())


class Layer:
    """One residual block's work outside of attention, on flat tokens."""

    def __init__(self, block: ResidualAttentionBlock):
        self.block, self.heads = block, block.attn.num_heads
        self.quick_gelu = isinstance(block.mlp.gelu, QuickGELU)
        scale = 1.702 if self.quick_gelu else 1.0
        self.in_proj = FrozenLinear(block.attn.in_proj_weight, block.attn.in_proj_bias)
        self.out_proj = FrozenLinear(block.attn.out_proj.weight, block.attn.out_proj.bias)
        self.fc = FrozenLinear(block.mlp.c_fc.weight, block.mlp.c_fc.bias, scale)
        self.proj = FrozenLinear(block.mlp.c_proj.weight, scale * block.mlp.c_proj.bias)

    def queries_keys_values(self, x: Tensor) -> Tensor:
        """(T, D) to (T, 3D)."""
        return self.in_proj(self.block.ln_1(x))

    def residual_and_mlp(self, x: Tensor, attended: Tensor) -> Tensor:
        """The rest of a pre-norm block after attention, (T, D).

        QuickGELU, x * sigmoid(1.702 x), is silu(1.702 x) / 1.702. In this form it is one pass over the widest tensor,
        of which only one copy is kept for the backward pass; the factors ride along in the products and sums around it.
        """
        block = self.block
        x = x + block.ls_1(self.out_proj(attended))
        hidden = self.fc(block.ln_2(x))
        if not self.quick_gelu:
            return x + block.ls_2(self.proj(block.mlp.gelu(hidden)))
        return torch.add(x, block.ls_2(self.proj(F.silu(hidden))), alpha=1 / 1.702)


class LastLayer(Layer):
    """The last block, of which few tokens' states are wanted."""

    def __init__(self, block: ResidualAttentionBlock):
        super().__init__(block)
        weights, biases = (apart(tensor, 0) for tensor in (block.attn.in_proj_weight, block.attn.in_proj_bias))
        self.q_proj, self.kv_proj = map(FrozenLinear, weights, biases)

    def few_queries(self, x: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Queries (T', D) of some of the tokens (T, D), keys and values (T, 2D) of all."""
        x = self.block.ln_1(x)
        return self.q_proj(x.index_select(0, places)), self.kv_proj(x)


def apart(qkv: Tensor, dim: int = -1) -> tuple[Tensor, Tensor]:
    """Queries (T, D), and keys and values (T, 2D), of (T, 3D)."""
    return qkv.tensor_split([qkv.shape[dim] // 3], dim)


def attend(
    heads: int,
    q: Tensor,
    kv: Tensor,
    lengths: list[int],
    masks: list[Tensor],
    trunk: KeysValues | None,
    constants: list[KeysValues | None],
) -> Tensor:
    """Attention of stacked rows to the trunk, to constants and to themselves.

    Args:
        heads: their number.
        q: (T', D) queries, stack after stack, Q to a row.
        kv: (T, 2D) keys and values, stack after stack, R to a row.
        lengths: how many of the T tokens are in each stack.
        masks: for each stack, (N, 1, Q, P + C + R) which keys a query sees.
        trunk: keys and values (1, P, D) of the trunk; None if it is the first stack.
        constants: for each stack, keys and values (N, C, D); None if there are none.

    Returns:
        (T', D) what the heads found, side by side.
    """
    attended = []
    queries = q.split([mask.shape[0] * mask.shape[2] for mask in masks])
    for stack_q, stack_kv, mask, seen in zip(queries, kv.split(lengths), masks, constants, strict=True):
        n, _, asked, _ = mask.shape
        k, v = stack_kv.unflatten(0, (n, -1)).chunk(2, dim=-1)
        before = [keys_values for keys_values in (trunk, seen) if keys_values is not None]
        if trunk is None:
            trunk = (k, v)  # this is the trunk, for the stacks to come
        if not asked:
            continue
        k = torch.cat([*(keys.to(k.dtype).expand(n, -1, -1) for keys, _ in before), k], dim=1)
        v = torch.cat([*(values.to(v.dtype).expand(n, -1, -1) for _, values in before), v], dim=1)
        heads_first = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (stack_q.unflatten(0, (n, asked)), k, v))
        out = F.scaled_dot_product_attention(*heads_first, attn_mask=mask)
        attended.append(out.transpose(1, 2).flatten(2).flatten(0, 1))
    return torch.cat(attended)


def project(tower: nn.Module, x: Tensor) -> Tensor:
    """The text projection, (K, D) to (K, E), in whichever form the tower has it."""
    if tower.text_projection is None:
        return x
    return tower.text_projection(x) if isinstance(tower.text_projection, nn.Linear) else x @ tower.text_projection


def pooled_positions(tower: nn.Module, ids: Tensor) -> Tensor:
    """(K,) the position whose state the tower returns."""
    kind = getattr(tower, "pool_type", None) or tower.text_pool_type
    if kind == "last":
        return torch.full((len(ids),), ids.shape[1] - 1)
    if kind == "argmax":
        return ids.argmax(dim=1)
    return (ids == (tower.eos_id if hasattr(tower, "eos_id") else tower.text_eos_id)).int().argmax(dim=1)


def why_plain(model: nn.Module) -> str | None:
    """What in a model's text tower keeps `PackedTower` from being exact for it; None if nothing does."""
    tower = getattr(model, "text", model)
    blocks = getattr(getattr(tower, "transformer", None), "resblocks", None)
    if not blocks or not isinstance(getattr(tower, "positional_embedding", None), Tensor):
        return f"{type(tower).__name__} is not built of open_clip's residual blocks"
    if getattr(tower, "cls_emb", None) is not None:
        return "the tower pools an appended class token"
    mask = getattr(tower, "attn_mask", None)
    if mask is None or not torch.equal(mask.isneginf(), torch.ones_like(mask, dtype=torch.bool).triu(1)):
        return "its attention is not causal"
    if (getattr(tower, "pool_type", None) or getattr(tower, "text_pool_type", None)) not in ("argmax", "eos", "last"):
        return "it does not pool one token per prompt"
    odd = next((block for block in blocks if not _is_standard(block)), None)
    return f"{type(odd).__name__} is not a standard block" if odd is not None else _why_not_as_built(model)


#: What open_clip builds causal text towers of.
KNOWN = {
    *(TextTransformer, Transformer, ResidualAttentionBlock, QuickGELU, LayerNorm, LayerNormFp32, LayerScale),
    *(nn.MultiheadAttention, NonDynamicallyQuantizableLinear, nn.Linear, nn.LayerNorm, nn.Embedding),
    *(nn.GELU, nn.Identity, nn.Sequential, nn.ModuleList),
}


def _why_not_as_built(model: nn.Module) -> str | None:
    """What has been done to the text tower since open_clip built it that only its own forward does justice to."""
    roots, tensors = text_parts(model)
    modules = [module for root in roots for module in root.modules()]
    if reason := hooked(modules):
        return reason
    # Parametrized modules have a class of their own.
    if odd := next((type(module).__name__ for module in modules if type(module) not in KNOWN), None):
        return f"it holds a {odd}"
    if hasattr(model, "parametrizations"):
        return f"{type(model).__name__} is parametrized"
    weights = [*tensors, *(weight for root in roots for weight in root.parameters())]
    return "its weights are trained" if any(weight.requires_grad for weight in weights) else None


def _is_standard(block: nn.Module) -> bool:
    """Pre-norm attention and MLP with biases, nothing besides: what `PackedTower` computes."""
    if type(block) is not ResidualAttentionBlock or hasattr(block, "ln_1_kv"):
        return False
    attn, fc, proj = block.attn, block.mlp.c_fc, block.mlp.c_proj
    return (
        type(attn) is nn.MultiheadAttention
        and attn.in_proj_weight is not None
        and attn.in_proj_bias is not None
        and attn.bias_k is None
        and not attn.add_zero_attn
        and attn.dropout == 0
        and len(block.mlp) == 3
        and all(type(linear) is nn.Linear and linear.bias is not None for linear in (fc, proj))
        and all(isinstance(scale, (nn.Identity, LayerScale)) for scale in (block.ls_1, block.ls_2))
    )
