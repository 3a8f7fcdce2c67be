"""LP++: a linear probe blended with zero-shot CLIP, its step sizes read off the data (Huang et al., CVPR 2024)."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from coop.clip.backbone import FrozenCLIP
from coop.clip.handcrafted import HandCrafted
from coop.clip.templates import Templates
from coop.methods.base import Count, Labeled, Method


class LPpp(Method):
    """logits = f W^T + b + alpha * f T^T, alpha (K), without a temperature, by full-batch descent in `prepare`.
    The iteration that is best on the validation images stays, the latest of equal ones; without any, the last.

    Args:
        iterations: of the descent.
        summed: alpha follows the sum of its gradients so far (the authors' code), or the current one (the paper).
    """

    transfers_to_other_classes = False
    works_without_validation = True
    fitted = ("weight", "bias", "alpha")

    def __init__(
        self, clip: FrozenCLIP, classnames: Sequence[str], *, templates: Templates, iterations: Count = 300,
        summed: bool = True,
    ):  # fmt: skip
        super().__init__(clip, classnames)
        self.iterations, self.summed = iterations, summed
        self.prompts = HandCrafted(clip, self.classnames, templates)
        layer = nn.Linear(clip.embed_dim, len(classnames)).requires_grad_(False)  # whose bias the authors start from
        for name, start in zip(self.fitted, (layer.weight, layer.bias, torch.zeros(len(classnames))), strict=True):
            self.register_buffer(name, start.data)

    def forward(self) -> Tensor:
        return self.prompts()

    def logits(self, image_features: Tensor) -> Tensor:
        class_weights = self.weight + self.alpha[:, None] * self.text_features().to(self.weight)
        return self.logits_of(image_features, class_weights, scale=1.0) + self.bias.to(image_features)

    def prepare(self, labeled: Labeled) -> None:
        f, labels, val_f, val_labels = (x.to(self.clip.device) for part in ("train", "val") for x in labeled(part))
        most = 0
        for iteration, _ in enumerate(self.descend(f.flatten(0, 1), labels.repeat(len(f)))):
            correct = (self.logits(val_f[0]).argmax(dim=1) == val_labels).sum() if len(val_labels) else 0
            if correct >= most:
                most, kept = correct, [tensor.clone() for tensor in self.fitted_tensors()]
                self.chosen = {"iteration": iteration} if len(val_labels) else {}
        self.weight, self.bias, self.alpha = kept

    def descend(self, f: Tensor, labels: Tensor) -> Iterator[Tensor]:
        """Descend on f (N, E) with momentum; yields the loss before each iteration, after it."""
        t, n = self.text_features().to(f), len(f)
        similarity, of_class = f @ t.T, nn.functional.one_hot(labels, len(t)).to(f)
        rate, rate_alpha = 4 * n / torch.linalg.eigvalsh(f.T @ f)[-1], n / (4 * (similarity**2).sum(dim=0).max())
        alpha, velocity = 250 * ((similarity * of_class).sum(dim=0) / of_class.sum(dim=0)).nanmean(), (0.0, 0.0, 0.0)
        self.weight, self.bias, self.alpha = of_class.T @ f, self.bias.to(f), alpha.repeat(len(t))
        for iteration in range(1, self.iterations + 1):
            logits = self.logits(f)
            residual = (logits.softmax(dim=1) - of_class) / n
            gradients = residual.T @ f, residual.sum(dim=0), (residual * similarity).sum(dim=0)
            velocity = [m * v + g for m, v, g in zip((0.9, 0.9, self.summed), velocity, gradients, strict=True)]
            self.weight -= rate * velocity[0]
            self.bias -= rate * velocity[1]
            self.alpha -= rate_alpha * velocity[2] * (iteration % 10 == 0)
            yield nn.functional.cross_entropy(logits, labels)
