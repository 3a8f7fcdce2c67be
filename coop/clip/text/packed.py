"""Steps 1 to 6 of `coop.clip.text.encoder`, for open_clip's causal text encoders."""

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

from coop.clip.snapshot import hooked
from coop.clip.text.onednn import FrozenLinear
from coop.clip.text.packing import Plan, as_symbols, build_plan, common_beginning, distinct_tokens
from coop.clip.text.plain import DeepPrompts, project, text_parts

KeysValues = tuple[Tensor, Tensor]
#: What open_clip builds causal text towers of.
KNOWN = {
    *(TextTransformer, Transformer, ResidualAttentionBlock, QuickGELU, LayerNorm, LayerNormFp32, LayerScale),
    *(nn.MultiheadAttention, NonDynamicallyQuantizableLinear, nn.Linear, nn.LayerNorm, nn.Embedding),
    *(nn.GELU, nn.Identity, nn.Sequential, nn.ModuleList),
}
with torch.device("meta"):  # where nothing is drawn from the random number generator
    STANDARD = {*ResidualAttentionBlock(1, 1, ls_init_value=1.0).state_dict()}


@dataclass(frozen=True)
class Constants:
    """A chunk's plan on the model's device, with all that does not depend on the context."""

    x: Tensor  # (U, D) input to the first layer of each distinct constant token
    qkv: Tensor  # (U, 3D) its query, key and value there
    index: Tensor  # (T,) which of them each computed token is; anything for a learned token
    learned: Tensor  # (2, V) prompt (0 if the context is shared) and slot of each distinct learned token
    learned_position: Tensor  # (V, D) its positional embedding
    learned_places: Tensor  # (W,) which of the computed tokens are learned, in the order of their slots
    learned_index: Tensor  # (W,) which of the distinct learned tokens they are
    learned_counts: list[int]  # how many of them have a slot below 0, 1, .. M
    masks: list[Tensor]  # for each stack, (N, 1, R, P + C + R), see `coop.clip.text.packing.Layout`
    lengths: list[int]  # for each stack, N * R
    queries: Tensor  # (T',) tokens whose state the last layer computes, see `coop.clip.text.packing.Plan`
    query_masks: list[Tensor]  # `masks` for these, (N, 1, Q, P + C + R)
    # The prefix KV cache: for each layer, keys and values of the shared prefix (1, 1, P, D), None if it is one of the
    # stacks; and for each stack those of its cached tokens (N, C, D).
    seen: list[tuple[KeysValues | None, list[KeysValues | None]]]
    pooled: Tensor  # (K,) which of the queries is each prompt's
    source: Tensor  # (T,) where the state of each computed token is in the layout with shared deep prompts


class PackedTower:
    def __init__(
        self, model: nn.Module, ids: Tensor, slots: Tensor, class_specific: bool, chunk: int, checkpoint: bool
    ):
        self.model, self.tower = model, getattr(model, "text", model)
        self.blocks = list(self.tower.transformer.resblocks)
        self._layers: list[Layer] = []
        self.class_specific, self.checkpoint = class_specific, checkpoint
        self.prompts = list(zip(ids.split(chunk), slots.split(chunk), strict=True))
        self.sizes = [len(ids) for ids, _ in self.prompts]
        self._plans: dict[bool, list[Plan]] = {}
        self.tokens = sum(len(plan.computed.prompts) for plan in self.plans(class_specific))
        self._constants: dict[bool, list[Constants]] = {}

    def forget(self) -> None:
        """Compute the constants anew at the next call: the model is no longer what it was."""
        self.blocks, self._layers, self._constants = list(self.tower.transformer.resblocks), [], {}

    def plans(self, class_specific: bool) -> list[Plan]:
        """For each chunk its plan, as it is where prompts have learned vectors in common or each its own."""
        if class_specific not in self._plans:
            ids, slots = map(torch.cat, zip(*self.prompts, strict=True))
            end = pooled_positions(self.tower, ids)
            symbols = as_symbols(ids, slots, class_specific)
            prefix = common_beginning(symbols, end)
            chunks = zip(symbols.split(self.sizes), end.split(self.sizes), strict=True)
            self._plans[class_specific] = [build_plan(*chunk, prefix) for chunk in chunks]
        return self._plans[class_specific]

    def chunks(self, class_specific_deep: bool = False) -> list[Callable[[Tensor, DeepPrompts], Tensor]]:
        """For each chunk of prompts, its features as a function of contexts and (class-specific) deep prompts."""
        first = self.constants(self.class_specific)
        behind = self.constants(True) if class_specific_deep else first
        return [partial(self._encode, *constants) for constants in zip(first, behind, strict=True)]

    def _encode(self, c: Constants, behind: Constants, ctx: Tensor, deep: DeepPrompts) -> Tensor:
        """(G, M, D), or (G, K, M, D) with a context per prompt, to (G, K, E).

        `c` is for the layers before any class-specific deep prompts, `behind` for the others.
        """
        run = recomputed if self.checkpoint else called
        x, qkv = self._first_inputs(c, ctx)
        for i in range(len(self._layers)):
            if i in deep:
                if deep[i].ndim == 3 and c is not behind:
                    c, x = behind, _rows(x, behind.source)
                x = _replace(c, x, deep[i])
            if i < len(self._layers) - 1:
                x = run(self._layer, i, x, qkv if i == 0 else None, c)
        x = run(self._last_layer, x, c)
        return project(self.tower, self.tower.ln_final(x)).to(ctx.dtype)

    def _first_inputs(self, c: Constants, ctx: Tensor) -> tuple[Tensor, Tensor]:
        """Input (G, T, D) of the first layer, and its queries, keys and values (G, T, 3D)."""
        prompt, slot = c.learned
        learned = _rows(ctx.flatten(1, -2), prompt * ctx.shape[-2] + slot).to(c.x.dtype) + c.learned_position
        learned_qkv = self._layers[0].queries_keys_values(learned).to(c.qkv.dtype)
        index = c.index.expand(len(ctx), -1)
        x, qkv = F.embedding(index, c.x), F.embedding(index, c.qkv)
        x.index_copy_(1, c.learned_places, _rows(learned, c.learned_index))
        qkv.index_copy_(1, c.learned_places, _rows(learned_qkv, c.learned_index))
        return x, qkv

    def _layer(self, i: int, x: Tensor, qkv: Tensor | None, c: Constants) -> Tensor:
        """Layer i on the computed tokens (G, T, D)."""
        layer = self._layers[i]
        q, kv = apart(layer.queries_keys_values(x) if qkv is None else qkv)
        return layer.residual_and_mlp(x, attend(layer.heads, q, kv, c.lengths, c.masks, *c.seen[i]))

    def _last_layer(self, x: Tensor, c: Constants) -> Tensor:
        """The last layer on the computed tokens (G, T, D), as far as the pooled tokens (G, K, D) need it."""
        layer = self._layers[-1]
        q, kv = layer.few_queries(x, c.queries)
        attended = attend(layer.heads, q, kv, c.lengths, c.query_masks, *c.seen[-1])
        return layer.residual_and_mlp(x.index_select(1, c.queries[c.pooled]), attended.index_select(1, c.pooled))

    def constants(self, class_specific: bool) -> list[Constants]:
        """For each plan its constants, of the weights as they were when this began or `forget` was last called."""
        # Not as inference tensors (a validation may come first, and training could not use them), nor under the
        # caller's autocast: no result may depend on which call happened to be the first.
        device = self.tower.token_embedding.weight.device
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
            if not self._layers:
                self._layers = [*map(Layer, self.blocks[:-1]), LastLayer(self.blocks[-1])]
            if class_specific not in self._constants:
                chunks = zip(self.prompts, self.plans(class_specific), self.plans(self.class_specific), strict=True)
                self._constants[class_specific] = [
                    self._compute_constants(*prompts, plan, before, class_specific) for prompts, plan, before in chunks
                ]
        return self._constants[class_specific]

    def _compute_constants(
        self, ids: Tensor, slots: Tensor, plan: Plan, before: Plan, class_specific: bool
    ) -> Constants:
        """The constants of one chunk, whose states are laid out by the plan `before` until they are needed."""
        device = self.tower.token_embedding.weight.device
        tokens = plan.computed
        constants, learned, index, is_learned = distinct_tokens(tokens, ids, slots, class_specific)
        slot = slots[tokens.prompts, tokens.positions]
        places = slot.argsort(stable=True)[int((slot < 0).sum()) :]
        x = self._embed(*constants)
        return Constants(
            x=x,
            qkv=self._layers[0].queries_keys_values(x),
            index=index.where(~is_learned, 0).to(device),
            learned=learned[:2].to(device),
            learned_position=self._positional(learned[2]),
            learned_places=places.to(device),
            learned_index=index[places].to(device),
            learned_counts=[int(((slot >= 0) & (slot < n)).sum()) for n in range(int(slots.max()) + 2)],
            masks=[mask[:, None].to(device) for mask in tokens.masks],
            lengths=[rows.prompt.numel() for rows in tokens.stacks],
            queries=plan.queries.to(device),
            query_masks=[mask[:, None].to(device) for mask in plan.query_masks],
            seen=self._compute_seen(ids, plan),
            pooled=plan.pooled.to(device),
            source=before.place[tokens.prompts, tokens.positions].to(device),
        )

    def _compute_seen(self, ids: Tensor, plan: Plan) -> list[tuple[KeysValues | None, list[KeysValues | None]]]:
        """`Constants.seen`: what runs through the text encoder once."""
        layout = plan.cached
        if not layout.stacks:
            return [(None, [None] * len(plan.computed.stacks))] * len(self.blocks)
        x = self._embed(ids[layout.prompts, layout.positions], layout.positions)[None]
        masks = [mask[:, None].to(x.device) for mask in layout.masks]
        lengths = [rows.prompt.numel() for rows in layout.stacks]
        prefix, seen = layout.stacks[0].prompt.numel(), []
        for layer in self._layers:
            q, kv = apart(layer.queries_keys_values(x))
            k, v = kv.chunk(2, dim=-1)
            cached = [(k[0, places], v[0, places]) for places in plan.cached_seen]
            seen.append(((k[None, :, :prefix].clone(), v[None, :, :prefix].clone()), cached))
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


def _rows(tables: Tensor, index: Tensor) -> Tensor:
    """The rows `index` (T,) of each of G tables (G, V, D): (G, T, D). Backwards, faster than index_select."""
    first = len(tables[0]) * torch.arange(len(tables), device=index.device)
    return F.embedding(index + first[:, None], tables.flatten(0, 1))


def _replace(c: Constants, x: Tensor, vectors: Tensor) -> Tensor:
    """States (G, T, D) with deep prompts (n, D) or (K, n, D) in the first n context positions."""
    n = vectors.shape[-2]
    count = c.learned_counts[n]
    prompt, row = c.learned[:, c.learned_index[:count]]
    if vectors.ndim == 3:
        row = prompt * n + row
    put_in = F.embedding(row, vectors.reshape(-1, vectors.shape[-1])).to(x.dtype)
    return x.index_copy(1, c.learned_places[:count], put_in.expand(len(x), -1, -1))


class Layer:
    """One residual block's work outside of attention, on tokens (G, T, D)."""

    def __init__(self, block: ResidualAttentionBlock):
        self.block, self.heads = block, block.attn.num_heads
        self.quick_gelu = isinstance(block.mlp.gelu, QuickGELU)
        scale = 1.702 if self.quick_gelu else 1.0
        self.in_proj = FrozenLinear(block.attn.in_proj_weight, block.attn.in_proj_bias)
        self.out_proj = FrozenLinear(block.attn.out_proj.weight, block.attn.out_proj.bias)
        self.fc = FrozenLinear(block.mlp.c_fc.weight, block.mlp.c_fc.bias, scale)
        self.proj = FrozenLinear(block.mlp.c_proj.weight, scale * block.mlp.c_proj.bias)

    def queries_keys_values(self, x: Tensor) -> Tensor:
        """(G, T, D) to (G, T, 3D)."""
        return self.in_proj(self.block.ln_1(x))

    def residual_and_mlp(self, x: Tensor, attended: Tensor) -> Tensor:
        """The rest of a pre-norm block after attention, (G, T, D).

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
        """Queries (G, T', D) of some of the tokens (G, T, D), keys and values (G, T, 2D) of all."""
        x = self.block.ln_1(x)
        return self.q_proj(x.index_select(1, places)), self.kv_proj(x)


def apart(qkv: Tensor, dim: int = -1) -> tuple[Tensor, Tensor]:
    """Queries (.., D), and keys and values (.., 2D), of (.., 3D)."""
    return qkv.tensor_split([qkv.shape[dim] // 3], dim)


def attend(
    heads: int,
    q: Tensor,
    kv: Tensor,
    lengths: list[int],
    masks: list[Tensor],
    prefix: KeysValues | None,
    cached: list[KeysValues | None],
) -> Tensor:
    """Attention of stacked rows to the shared prefix, to cached tokens and to themselves.

    Args:
        heads: their number.
        q: (G, T', D) queries, stack after stack, Q to a row.
        kv: (G, T, 2D) keys and values, stack after stack, R to a row.
        lengths: how many of the T tokens are in each stack.
        masks: for each stack, (N, 1, Q, P + C + R) which keys a query sees.
        prefix: keys and values (1, 1, P, D) of the shared prefix; None if it is the first stack.
        cached: for each stack, keys and values (N, C, D); None if there are none.

    Returns:
        (G, T', D) what the heads found, side by side.
    """
    attended = []
    queries = q.split([mask.shape[0] * mask.shape[2] for mask in masks], 1)
    for stack_q, stack_kv, mask, seen in zip(queries, kv.split(lengths, 1), masks, cached, strict=True):
        g, (n, _, asked, _) = len(q), mask.shape
        k, v = stack_kv.unflatten(1, (n, -1)).chunk(2, dim=-1)
        before = [keys_values for keys_values in (prefix, seen) if keys_values is not None]
        if prefix is None:
            prefix = (k, v)  # this is the shared prefix, for the stacks to come
        if not asked:
            continue
        k = torch.cat([*(keys.to(k.dtype).expand(g, n, -1, -1) for keys, _ in before), k], dim=2)
        v = torch.cat([*(values.to(v.dtype).expand(g, n, -1, -1) for _, values in before), v], dim=2)
        rows = (t.flatten(0, 1) for t in (stack_q.unflatten(1, (n, -1)), k, v))
        heads_first = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in rows)
        out = F.scaled_dot_product_attention(*heads_first, attn_mask=mask.expand(g, -1, -1, -1, -1).flatten(0, 1))
        attended.append(out.transpose(1, 2).flatten(2).reshape(g, n * asked, -1))
    return torch.cat(attended, dim=1)


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


def _is_standard(block: nn.Module) -> bool:
    """Pre-norm attention and MLP with biases, nothing besides, maybe layer scales: what `PackedTower` computes."""
    return type(block) is ResidualAttentionBlock and {*block.state_dict(), "ls_1.gamma", "ls_2.gamma"} == STANDARD


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


def recomputed(function, *args):
    """Call without keeping activations for the backward pass, which calls again."""
    if not torch.is_grad_enabled():
        return function(*args)
    return recompute_in_backward(function, *args, use_reentrant=False, preserve_rng_state=False)


def called(function, *args):
    return function(*args)
