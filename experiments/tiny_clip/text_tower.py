"""Training the text tower: a causal CLIP transformer that learns to say where a text's photographs lie."""

import io
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from prompts import CONTEXT_LENGTH, Batch, Prompts
from torch import Tensor, nn
from tqdm import tqdm

from coop.errors import CoopError
from coop.system.files import write_atomically

SAVE_EVERY = 50  # steps
START_NORM, START_NOISE = 0.3, 0.01  # of token rows; 0.3 / sqrt(256) is about CLIP's 0.02


@dataclass(frozen=True)
class Training:
    """Everything that the training depends on, besides prompts and prototypes.

    Attributes:
        sharpness: temperature of the distribution over the prototypes that text and target must agree in.
    """

    seed: int = 0
    steps: int = 1000
    batch: int = 256
    width: int = 256
    layers: int = 2
    heads: int = 4
    lr: float = 2e-3
    weight_decay: float = 0.02
    warmup: int = 100
    sharpness: float = 20.0
    cosine_weight: float = 5.0


class TextTower(nn.Module):
    """open_clip's text side with only the token rows that occur, run without padding to the context length.

    Args:
        training: its sizes.
        vocabulary: V token ids, ascending.
        meanings: (V, E), what each token says by itself; E is at most the tower's width.
    """

    def __init__(self, training: Training, vocabulary: list[int], meanings: Tensor):
        super().__init__()
        embed_dim = meanings.shape[1]
        text_cfg = dict(width=training.width, heads=training.heads, layers=training.layers)
        self.clip = open_clip.CLIP(
            embed_dim=embed_dim,
            vision_cfg=dict(image_size=8, patch_size=8, width=8, layers=1, head_width=8),  # not used
            text_cfg=dict(context_length=CONTEXT_LENGTH, vocab_size=len(vocabulary), **text_cfg),
        )
        # A token starts where the words that have it lie, so that the blocks need not learn every word by itself.
        nn.init.normal_(self.clip.token_embedding.weight, std=START_NOISE)
        self.clip.token_embedding.weight.data[:, :embed_dim] += START_NORM * meanings
        self.rows = {token: row for row, token in enumerate(vocabulary)}
        del self.clip.visual

    def forward(self, texts: list[list[int]]) -> Tensor:
        """Token ids of texts (N) to text_features (N, E), L2-normalised."""
        lengths = torch.tensor([len(text) for text in texts])
        ids = torch.zeros(len(texts), int(lengths.max()), dtype=torch.long)
        for row, text in zip(ids, texts, strict=True):
            row[: len(text)] = torch.tensor([self.rows[token] for token in text])
        clip, length = self.clip, ids.shape[1]
        hidden = clip.token_embedding(ids) + clip.positional_embedding[:length]
        hidden = clip.transformer(hidden, attn_mask=clip.attn_mask[:length, :length])
        last = clip.ln_final(hidden[torch.arange(len(texts)), lengths - 1])
        return F.normalize(last @ clip.text_projection, dim=-1)

    def in_batches(self, texts: list[list[int]], count: int) -> Tensor:
        """The same, texts of similar length together, which wastes less on padding."""
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        size = math.ceil(len(order) / count)
        parts = [order[start : start + size] for start in range(0, len(order), size)]
        features = torch.cat([self([texts[index] for index in part]) for part in parts])
        return features[torch.tensor(order).argsort()]


def loss_of(features: Tensor, batch: Batch, prototypes: Tensor, training: Training) -> Tensor:
    """How far texts are from their targets: as distributions over the classes, and in angle.

    The distribution makes them agree where it matters for telling classes apart, the angle everywhere else.
    """
    wanted = (training.sharpness * batch.targets @ prototypes.T).log_softmax(dim=-1)
    given = (training.sharpness * features @ prototypes.T).log_softmax(dim=-1)
    divergence = F.kl_div(given, wanted, reduction="batchmean", log_target=True)
    return divergence + training.cosine_weight * (1 - (features * batch.targets).sum(dim=-1)).mean()


def optimizer_of(tower: TextTower, training: Training) -> torch.optim.AdamW:
    """AdamW; gains, biases and the tables of tokens and positions do not decay."""
    decayed, free = [], []
    for name, weight in tower.named_parameters():
        if name != "clip.logit_scale":
            (decayed if weight.ndim > 1 and "embedding" not in name else free).append(weight)
    groups = [dict(params=decayed, weight_decay=training.weight_decay), dict(params=free, weight_decay=0.0)]
    return torch.optim.AdamW(groups, lr=training.lr, betas=(0.9, 0.98))


def learning_rate(step: int, training: Training) -> float:
    """Linear warm-up, then half a cosine down to 0.5 %."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / training.steps)) + 0.005
    return training.lr * min(1.0, (step + 1) / training.warmup) * cosine


def train(prompts: Prompts, prototypes: Tensor, training: Training, checkpoint: Path) -> TextTower:
    """Train, or go on from the checkpoint: the weights are the same bits either way.

    Raises:
        CoopError: the checkpoint is of other settings or cannot be read.
    """
    torch.manual_seed(training.seed)
    vocabulary = prompts.vocabulary()
    tower = TextTower(training, vocabulary, prompts.token_meanings(vocabulary))
    optimizer = optimizer_of(tower, training)
    start = _resume(checkpoint, tower, optimizer, training)
    for step in tqdm(range(start, training.steps), desc="text tower", initial=start, total=training.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, training)
        batch = prompts.batch(step, training.batch)
        loss = loss_of(tower.in_batches(batch.rows, 4), batch, prototypes, training)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(tower.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == training.steps:
            _save(checkpoint, tower, optimizer, training, step + 1)
    return tower.eval()


def _save(checkpoint: Path, tower: TextTower, optimizer: torch.optim.Optimizer, training: Training, step: int) -> None:
    state = dict(
        step=step, training=asdict(training), vocabulary=list(tower.rows), tower=tower.state_dict(),
        optimizer=optimizer.state_dict(),
    )  # fmt: skip
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomically(checkpoint, buffer.getvalue())


def _resume(checkpoint: Path, tower: TextTower, optimizer: torch.optim.Optimizer, training: Training) -> int:
    """Take weights and optimiser from the checkpoint, if there is one; how many steps it has done."""
    if not checkpoint.exists():
        return 0
    try:
        state = torch.load(checkpoint, weights_only=True)
        same = (state["training"], state["vocabulary"]) == (asdict(training), list(tower.rows))
    except Exception as error:
        raise CoopError(f"{checkpoint}: not a readable checkpoint ({error}); delete it to start anew") from error
    if not same:
        raise CoopError(f"{checkpoint}: of a training with other settings or words; delete it or name another folder")
    tower.load_state_dict(state["tower"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]
