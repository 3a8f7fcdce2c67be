"""ProGrad: only such steps as do not unlearn the hand-crafted prompt (Zhu et al., ICCV 2023)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from coop.clip.backbone import FrozenCLIP
from coop.clip.handcrafted import HandCrafted
from coop.clip.sharded import mean_over_processes
from coop.clip.templates import check_template
from coop.errors import CoopError
from coop.methods.base import Batch
from coop.methods.coop import PromptLearner, word_context


class ProGrad(PromptLearner):
    """CoOp's prompt. Where the gradient g of the cross-entropy opposes the gradient h of the distance from zero-shot
    predictions, `strength` times its component along h is taken off (equation 4); h itself trains nothing.

    Args:
        clip: the frozen CLIP.
        classnames: K class names.
        template: the hand-crafted prompt, with `{}` where the class name goes.
        strength: lambda; with 1, what is left of g is orthogonal to h.
        temperature: of both predictions in the distance.
        n_ctx: M.
        ctx_init: words, or a template that begins with them; null: a random start. As many context vectors as there
            are words ("pet," is one word of two tokens) start from their first tokens, those before from zero.
        options: CoOp's others.
    """

    def __init__(self, clip: FrozenCLIP, classnames: Sequence[str], *, template: str, strength: float = 1.0,
                 temperature: float = 1.0, n_ctx: int = 16, ctx_init: str | None = None, **options):  # fmt: skip
        self.check(template, strength, temperature, n_ctx, ctx_init, **options)
        words = _words(ctx_init)
        zeros = n_ctx - len(words)
        if words:
            options["prompt_template"] = " ".join(["X"] * zeros + words) + " {}."
        super().__init__(clip, classnames, n_ctx=n_ctx, **options)
        if words:
            self.ctx.data[:zeros], self.ctx.data[zeros:] = 0, word_context(clip, " ".join(words))[: len(words)]
        self.strength, self.temperature = strength, temperature
        self.teacher = HandCrafted(clip, self.classnames, [template])

    @classmethod
    def check(cls, template: str, strength: float = 1.0, temperature: float = 1.0, n_ctx: int = 16,
              ctx_init: str | None = None, **options) -> None:  # fmt: skip
        """Raises CoopError for options that no backbone could serve."""
        check_template("method.template", template)
        if min(strength, temperature) <= 0:
            raise CoopError(f"method.strength={strength}, method.temperature={temperature}: both must be positive")
        if ctx_init is not None and not 0 < len(_words(ctx_init)) <= n_ctx:
            raise CoopError(f'method.ctx_init="{ctx_init}": expected 1 to {n_ctx} words (method.n_ctx={n_ctx})')
        for key in ("class_specific", "class_token_position", "prompt_template") if ctx_init else ():
            if options.get(key) not in (None, False, "end"):
                raise CoopError(f"method.{key}={options[key]}: with words to start from there is none; ctx_init=null")
        super().check(n_ctx, **options)

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        logits, t = self.logits(batch.image_features), self.temperature
        zero_shot = self.logits_of(batch.image_features, self.teacher())
        distance = t**2 * F.cross_entropy(logits / t, (zero_shot / t).softmax(dim=1))
        nothing = torch.zeros_like(distance, requires_grad=True)  # gets the scale of mixed precision as its gradient
        self._to_backward = distance, nothing
        return F.cross_entropy(logits, batch.labels) + nothing, logits

    def backward(self, loss: Tensor) -> None:
        (distance, nothing), self._to_backward = self._to_backward, None
        learned = [parameter for parameter in self.parameters() if parameter.requires_grad]
        scale, *gs = torch.autograd.grad(loss, [nothing, *learned], retain_graph=True)
        hs = torch.autograd.grad(distance, learned, scale)
        kept = map(self._without_conflict, mean_over_processes(gs), mean_over_processes(hs))
        # Backwards once more, through the parameters alone, so that DistributedDataParallel sees gradients come.
        sum((p * g).sum() for p, g in zip(learned, kept, strict=True)).backward()

    def _without_conflict(self, g: Tensor, h: Tensor) -> Tensor:
        along = (g * h).sum()  # 0 * h: what is not finite there has to show, for mixed precision to skip the step
        return torch.where(along < 0, g - self.strength * along / h.square().sum() * h, g + 0 * h)


def _words(ctx_init: str | None) -> list[str]:
    return (ctx_init or "").partition("{}")[0].replace("_", " ").split()
