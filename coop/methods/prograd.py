"""ProGrad: only such steps as do not unlearn the hand-crafted prompt (Zhu et al., ICCV 2023)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from coop.clip.backbone import FrozenCLIP
from coop.clip.handcrafted import HandCrafted
from coop.clip.templates import Template
from coop.clip.text.sharded import mean_over_processes
from coop.errors import CoopError
from coop.methods.base import Batch, Positive
from coop.methods.coop import ContextLength, PromptLearner, word_context


class ProGrad(PromptLearner):
    """CoOp's prompt; where the gradient g of the cross-entropy opposes the gradient h of the distance from zero-shot
    predictions, `strength` times its component along h is taken off (equation 4). h itself trains nothing.

    Args:
        strength: lambda; with 1, what is left of g is orthogonal to h.
        temperature: of both predictions in the distance.
        n_ctx: M.
        ctx_init: words, or a template that begins with them. As many vectors as there are words (one word, "pet,", has
            two tokens) start from the first tokens, those before from zero; all are random if not given.
    """

    words_stay = True

    def __init__(
        self, clip: FrozenCLIP, classnames: Sequence[str], *, template: Template, strength: Positive = 1.0,
        temperature: Positive = 1.0, n_ctx: ContextLength = 16, ctx_init: str | None = None, **options,
    ):  # fmt: skip
        words = _words(ctx_init)
        if words and options.get("class_token_position", "end") == "end":
            words_stay = " ".join(["X"] * (n_ctx - len(words)) + words) + " {}."  # those beyond the first M tokens
            options["prompt_template"] = options.get("prompt_template") or words_stay
        super().__init__(clip, classnames, n_ctx=n_ctx, **options)
        if words:
            start = word_context(clip, " ".join(words))[: len(words)]
            self.ctx.data.copy_(F.pad(start, (0, 0, n_ctx - len(words), 0)))
        self.strength, self.temperature = strength, temperature
        self.teacher = HandCrafted(clip, self.classnames, [template])

    @classmethod
    def check(cls, n_ctx=16, ctx_init=None, **options) -> None:
        if ctx_init is not None and not 0 < len(_words(ctx_init)) <= n_ctx:
            raise CoopError(f'method.ctx_init="{ctx_init}": expected 1 to {n_ctx} words (method.n_ctx={n_ctx})')
        super().check(n_ctx=n_ctx, **options)

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        logits, t = self.logits(batch.image_features), self.temperature
        zero_shot = self.logits_of(batch.image_features, self.teacher())
        distance = t**2 * F.cross_entropy(logits / t, (zero_shot / t).softmax(dim=1))
        nothing = torch.zeros_like(distance, requires_grad=True)  # gets the scale of mixed precision as its gradient
        self._to_backward = distance, nothing
        return F.cross_entropy(logits, batch.labels) + nothing, logits

    def backward(self, loss: Tensor) -> None:
        (distance, nothing), self._to_backward = self._to_backward, None
        scale, g = torch.autograd.grad(loss, [nothing, self.ctx], retain_graph=True)
        g, h = mean_over_processes([g, *torch.autograd.grad(distance, self.ctx, scale)])
        along = (g * h).sum()
        # 0 * h: what is not finite in h has to show, so that mixed precision leaves this step out.
        kept = torch.where(along < 0, g - self.strength * along / h.square().sum() * h, g + 0 * h)
        (self.ctx * kept).sum().backward()  # gives ctx this gradient where DistributedDataParallel sees it come


def _words(ctx_init: str | None) -> list[str]:
    return (ctx_init or "").partition("{}")[0].replace("_", " ").split()
