"""The text encoder run on prompts: exactly CLIP's own result, without the work that cannot change it.

The plain way (`plain_text_features`) puts the context vectors among the token embeddings of K prompts and runs the
text encoder on all K * L tokens, L = 77. `PromptEncoder` computes the same numbers from a fraction of these tokens,
because CLIP's text encoder is causal (the state of a token depends on the tokens before it and on nothing else), works
on each token alone outside of attention, and is frozen:

1. Only the [EOS] state is used, so no token after [EOS] is computed.
2. Prompts that begin with the same tokens and the same context vectors have the same states there. A shared context
   at the end makes [SOS] v1 .. vM this shared prefix: it is computed once, and its keys and values serve every prompt.
   Its gradient is the sum over the prompts, as autograd forms it. Likewise the first words of a few class names that
   they have in common.
3. What stands before a prompt's first context vector (the class name in front of the context, [SOS]) is the same in
   every step: its keys and values are computed once, ever (a prefix KV cache).
4. The remaining suffix tokens form one flat batch without padding. Only attention needs to know which prompt a token
   belongs to: there, whole suffixes lie side by side in rows (packing: `coop.clip.text.packing` has a worked example),
   and a mask lets a token see the shared prefix, its own prompt's cached tokens and its own prompt's suffix up to
   itself. These are the tokens before it.
5. Of the last layer only [EOS] is computed; the other tokens give their keys and values.
6. In the first layer, queries, keys and values of constant tokens are constant.

Several contexts for the same classes (CoCoOp: one per image; PLOT: N prompts) are laid out alike, so that they are a
batch of G such flat batches.

Deep prompts replace the states at the context positions in front of a layer. The same vectors for all classes (MaPLe,
IVLP, PromptSRC) leave the states of the shared prefix the same for all classes: nothing changes. A class's own vectors
(TCP) separate the classes from that layer on: there the tokens are laid out anew, as for a context per class.

No step approximates anything; only the order of floating-point sums differs. With open_clip's 1000 ImageNet names and
16 shared context vectors at the end, 4021 of 77 000 tokens are computed (`PromptEncoder.tokens_computed`, `.tokens`).

Where a text encoder's structure differs from open_clip's causal transformer (SigLIP attends both ways, Hugging Face's
have their own blocks, CoCa appends a class token), `PromptEncoder` runs its own forward, says so in the log, and gives
the same features at the plain cost. So it does where modules have hooks or parametrizations, are replaced (by LoRA's,
say) or trained, as long as that lasts.

Further letters: n deep prompts, G contexts, P tokens of the shared prefix, N rows of R tokens.
"""

import logging
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coop.clip.snapshot import Snapshot
from coop.clip.text.packed import PackedTower, called, recomputed, why_plain
from coop.clip.text.plain import DeepPrompts, PlainTower, text_blocks, text_parts, token_embedding
from coop.errors import CoopError

log = logging.getLogger("coop")

# Prompts encoded together without gradient; more would only take memory. The prompts of one context stay together.
PROMPTS_WITHOUT_GRADIENT = 4096


class PromptEncoder(nn.Module):
    """Text features of K prompts as a function of their context vectors, and of deep prompts where there are any.

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
            chunk's activations exist at a time. G contexts for K classes are G * K prompts. The gradient is that of
            all prompts together.

    Attributes:
        tokens: K * L, what the plain way computes for each context.
        tokens_computed: what a step computes here for each context (without deep prompts of a class's own).

    Raises:
        CoopError: a chunk of less than one class, or `checkpoint` for a text encoder that cannot.
    """

    def __init__(
        self,
        model: nn.Module,
        ids: Tensor,
        slots: Tensor,
        class_specific: bool = False,
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
        self.class_specific, self.class_chunk = class_specific, class_chunk
        self.prompts, self.n_ctx = len(ids), int(slots.max()) + 1
        self._model = (model,)
        chunk = min(class_chunk or self.prompts, self.prompts)
        self._prompts = (ids.cpu(), slots.cpu(), class_specific, chunk, checkpoint)
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
            f"; the model's own forward is used, because {reason}" if reason else "",
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

    def forward(self, ctx: Tensor, deep: DeepPrompts | None = None, normalize: bool = True) -> Tensor:
        """Encode all prompts with each context.

        Args:
            ctx: (*, M, D), or (*, K, M, D) if class-specific. * is nothing for one context, B for a context per
                image, N for several prompts of each class.
            deep: for some of the layers 1, 2, .. the vectors (n, D), or (K, n, D) with vectors of each class's own,
                that replace the states of the first n context positions in front of that layer; n at most M.
                They are not given a positional embedding. Layer 0 has the context itself.
            normalize: L2-normalize the features.

        Returns:
            (*, K, E) text features in ctx's dtype, differentiable in `ctx` and `deep`.

        Raises:
            CoopError: shapes or layers that do not fit, or deep prompts for a text encoder without residual blocks.
        """
        deep = deep or {}
        self._check(ctx, deep)
        self._look_at_model()
        own = 3 if self.class_specific else 2
        contexts = ctx.reshape(-1, *ctx.shape[-own:])
        features = self._encode(contexts, deep)
        features = F.normalize(features, dim=-1) if normalize else features
        return features.reshape(*ctx.shape[:-own], *features.shape[1:])

    def _check(self, ctx: Tensor, deep: DeepPrompts) -> None:
        own = (self.prompts, self.n_ctx) if self.class_specific else (self.n_ctx,)
        width = ctx.shape[-1]
        if ctx.shape[-len(own) - 1 : -1] != own:
            expected = "".join(f"{size}, " for size in own)
            raise CoopError(f"a context of shape {tuple(ctx.shape)}: these prompts take (..., {expected}{width})")
        if not deep:
            return
        layers = len(text_blocks(*self._model))
        for layer, vectors in deep.items():
            if not 1 <= layer < layers:
                raise CoopError(
                    f"deep text prompts in front of layer {layer}: the text encoder has layers 0 to {layers - 1}, and "
                    f"layer 0 takes the context itself; choose from 1 to {layers - 1}"
                )
            n = vectors.shape[-2]
            if tuple(vectors.shape) not in ((n, width), (self.prompts, n, width)) or not 1 <= n <= self.n_ctx:
                raise CoopError(
                    f"deep text prompts of shape {tuple(vectors.shape)} in front of layer {layer}: expected "
                    f"(n, {width}) or ({self.prompts}, n, {width}), n from 1 to the {self.n_ctx} context vectors"
                )

    def _encode(self, contexts: Tensor, deep: DeepPrompts) -> Tensor:
        """(G, M, D) or (G, K, M, D) to (G, K, E), not normalized, as many prompts at a time as there may be."""
        chunks = self.tower.chunks(any(vectors.ndim == 3 for vectors in deep.values()))
        limit = self.class_chunk or (None if torch.is_grad_enabled() else PROMPTS_WITHOUT_GRADIENT)
        together = max(1, limit // self.prompts) if limit else len(contexts)
        groups = contexts.split(together)
        run = called if len(chunks) * len(groups) == 1 else recomputed
        pieces = {layer: self._pieces(vectors, 0, vectors.ndim == 3) for layer, vectors in deep.items()}
        deep_of = [{layer: piece[i] for layer, piece in pieces.items()} for i in range(len(chunks))]
        rows = []
        for group in groups:
            parts = self._pieces(group, 1, self.class_specific)
            rows.append(torch.cat([run(*call) for call in zip(chunks, parts, deep_of, strict=True)], dim=1))
        return torch.cat(rows)

    def _pieces(self, tensor: Tensor, dim: int, by_class: bool) -> list[Tensor]:
        """What each chunk of prompts needs of a tensor."""
        sizes = self.tower.sizes
        return list(tensor.split(sizes, dim)) if by_class else [tensor] * len(sizes)
