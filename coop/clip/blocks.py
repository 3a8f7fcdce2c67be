"""A transformer block computed from its weights: for some rows only, and with low-rank changes of its projections."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock
from timm.layers.attention import Attention
from torch import Tensor, nn

#: A change of one projection, "q", "k", "v" or "o": its input (..., D) to what is added to its output (..., D).
Deltas = Mapping[str, Callable[[Tensor], Tensor]]


@dataclass(frozen=True)
class Block:
    """A pre-norm transformer block, whoever wrote it."""

    norm_1: nn.Module  # in front of the attention
    in_weight: Tensor  # (3 D, D), queries, keys and values one below the other
    in_bias: Tensor | None  # (3 D)
    out: nn.Module  # the output projection
    heads: int  # H
    scale_1: nn.Module  # layer scale of the attention's output
    norm_2: nn.Module  # in front of the MLP
    mlp: nn.Module
    scale_2: nn.Module  # layer scale of the MLP's output
    q_norm: nn.Module | None = None  # of each head's queries
    k_norm: nn.Module | None = None  # of each head's keys

    def __call__(
        self, x: Tensor, rows: int | None = None, mask: Tensor | None = None, deltas: Deltas | None = None
    ) -> Tensor:
        """States (B, S, D) to those after the block, (B, R, D), of the first R rows.

        Args:
            x: the states of all rows, which the first R attend to.
            rows: R; all if not given. What the others would become is not computed.
            mask: (S, S), added to the attention's logits.
            deltas: changes of the projections.
        """
        rows = x.shape[1] if rows is None else rows
        h = self.norm_1(x)
        x = x[:, :rows] + self.scale_1(self._attention(h, rows, mask, deltas or {}))
        return x + self.scale_2(self.mlp(self.norm_2(x)))

    def _attention(self, h: Tensor, rows: int, mask: Tensor | None, deltas: Deltas) -> Tensor:
        q, k, v = (self._split(part) for part in self._project(h, rows, deltas))
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        mask = None if mask is None else mask[:rows].to(q.dtype)
        joined = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        out = self.out(joined)
        return out + deltas["o"](joined) if "o" in deltas else out

    def _project(self, h: Tensor, rows: int, deltas: Deltas) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, R, D), keys and values (B, S, D)."""
        width = h.shape[-1]
        if rows == h.shape[1]:
            q, k, v = F.linear(h, self.in_weight, self.in_bias).split(width, dim=-1)
        else:
            bias_q, bias_kv = (None, None) if self.in_bias is None else self.in_bias.split([width, 2 * width])
            q = F.linear(h[:, :rows], self.in_weight[:width], bias_q)
            k, v = F.linear(h, self.in_weight[width:], bias_kv).split(width, dim=-1)
        q = q + deltas["q"](h[:, :rows]) if "q" in deltas else q
        k = k + deltas["k"](h) if "k" in deltas else k
        v = v + deltas["v"](h) if "v" in deltas else v
        return q, k, v

    def _split(self, x: Tensor) -> Tensor:
        """(B, S, D) to (B, H, S, D / H)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def read_block(module: nn.Module) -> Block | None:
    """The parts of open_clip's or timm's block; None for one that is built otherwise."""
    if type(module) is ResidualAttentionBlock and module.attn.in_proj_weight is not None:
        attn = module.attn
        return Block(
            module.ln_1, attn.in_proj_weight, attn.in_proj_bias, attn.out_proj, attn.num_heads,
            module.ls_1, module.ln_2, module.mlp, module.ls_2,
        )  # fmt: skip
    attn = getattr(module, "attn", None)
    plain = type(attn) is Attention and isinstance(attn.norm, nn.Identity) and getattr(attn, "gate", None) is None
    if not plain or not hasattr(module, "ls1"):
        return None
    return Block(
        module.norm1, attn.qkv.weight, attn.qkv.bias, attn.proj, attn.num_heads,
        module.ls1, module.norm2, module.mlp, module.ls2, attn.q_norm, attn.k_norm,
    )  # fmt: skip


def run(block: Block, x: Tensor, checkpoint: bool, **options) -> Tensor:
    """A block; with `checkpoint`, what is inside is computed again in the backward pass instead of being kept."""
    if not (checkpoint and torch.is_grad_enabled()):
        return block(x, **options)
    return torch.utils.checkpoint.checkpoint(lambda states: block(states, **options), x, use_reentrant=False)
