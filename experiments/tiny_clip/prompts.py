"""Training prompts: a word in a context, and where in the joint space the text belongs."""

import random
from typing import NamedTuple

import torch
import torch.nn.functional as F
from open_clip import OPENAI_IMAGENET_TEMPLATES, SimpleTokenizer
from torch import Tensor
from words import Word

CONTEXT_LENGTH = 32
LONGEST_NAME = 8  # tokens
MOST_FILLERS = 16  # as many context vectors as CoOp learns
GROUPS = {"name": 0.2, "synonym": 0.1, "hypernym": 0.1, "noun": 0.6}
KINDS_OF_PROMPT = {"template": 0.77, "kind": 0.05, "fillers": 0.15, "bare": 0.03}
PHOTO = "a photo of a {}."
PHOTO_SHARE = 0.5  # of the templates
PLAIN = [
    "a photo of {}.", "a photo of the {}.", "an image of a {}.", "a picture of a {}.", "this is a photo of a {}.",
    "there is a {} in the photo.", "a photograph of a {}.", "{} in the wild.", "a centered photo of a {}.",
    "a photo of the {}, on a plain background.", "a photo of a {} and nothing else.", "a photo of one {}.",
]  # fmt: skip
MEDIA = [
    "a pencil sketch of a {}.", "a line drawing of a {}.", "a cartoon of a {}.", "a {} cartoon.", "clip art of a {}.",
    "an oil painting of a {}.", "a work of art of a {}.", "a sketch of a {}.", "a drawing of a {}.",
]  # fmt: skip
OF_A_KIND = ["a photo of a {}, a type of {kind}.", "a photo of {}, a type of {kind}.", "a {}, a kind of {kind}."]
# What the words of a template say about the medium (see photographs.MEDIA) ...
MEDIUM = {
    "sketch": "sketch", "doodle": "sketch", "drawing": "sketch", "painting": "painting", "art": "painting",
    "rendition": "painting", "rendering": "cartoon", "cartoon": "cartoon", "video": "cartoon", "clip": "cartoon",
    "black": "gray", "dark": "dark", "bright": "bright", "blurry": "blurry", "pixelated": "pixelated",
    "resolution": "low resolution", "corrupted": "low resolution", "close-up": "close-up", "cropped": "close-up",
    "small": "small",
}  # fmt: skip
# ... and the words for things that are not the thing itself, which look like what they are made as.
MADE_AS = {
    "sculpture": "sculpture", "tattoo": "tattoo", "origami": "paper", "plushie": "teddy", "plastic": "plastic",
    "embroidered": "embroidery", "graffiti": "mural", "toy": "plaything",
}  # fmt: skip


class Context(NamedTuple):
    """What stands around a word, and what it adds to the word's target (None: nothing)."""

    before: str
    after: str
    shift: Tensor | None = None
    fillers: tuple[int, ...] = ()  # tokens before everything else


class Batch(NamedTuple):
    rows: list[list[int]]  # token ids with [SOS] and [EOS], not padded
    targets: Tensor  # (B, E), L2-normalised


class Prompts:
    """Draws training prompts; a batch depends on the seed and its step alone.

    Args:
        words: all words.
        shown: (N, E) where the photographs of each lie.
        bare: (N, E) where the bare word lies, with all that it may mean.
        kinds: of each word, names of what it is a kind of.
        media: name of a medium to its shift (E,).
        strength: of fillers and crafts, in units of a word's own target.
        seed: of the draws.
    """

    def __init__(
        self,
        words: list[Word],
        shown: Tensor,
        bare: Tensor,
        kinds: list[list[str]],
        media: dict[str, Tensor],
        strength: float,
        seed: int,
    ):
        self.tokenizer = SimpleTokenizer()
        self.shown, self.bare, self.kinds, self.strength, self.seed = shown, bare, kinds, strength, seed
        self.texts = [word.text for word in words]
        self.ids = [self.tokenizer.encode(text) for text in self.texts]
        self.index = {text: index for index, text in enumerate(self.texts)}
        usable = [index for index, ids in enumerate(self.ids) if 0 < len(ids) <= LONGEST_NAME]
        self.groups = {group: [i for i in usable if words[i].group == group] for group in GROUPS}
        templates = [template("{}") for template in OPENAI_IMAGENET_TEMPLATES] + PLAIN + MEDIA
        self.contexts = [self._context(template, media) for template in templates]
        self.neutral = sorted({token for template in templates for token in self._around(template)})
        self.single = [index for index in usable if len(self.ids[index]) == 1]

    def _context(self, template: str, media: dict[str, Tensor]) -> Context:
        words = set(template.replace(".", " ").replace(",", " ").split())
        shifts = [media[medium] for word, medium in MEDIUM.items() if word in words]
        shifts += [self.strength * self.shown[self.index[name]] for word, name in MADE_AS.items() if word in words]
        return Context(*template.split("{}"), sum(shifts[1:], shifts[0]) if shifts else None)

    def _around(self, template: str) -> list[int]:
        return [token for part in template.split("{}") for token in self.tokenizer.encode(part)]

    def vocabulary(self) -> list[int]:
        """All token ids that a batch may hold, ascending."""
        used = {self.tokenizer.sot_token_id, self.tokenizer.eot_token_id, *self.neutral}
        for text in {*self.texts, *(kind for kinds in self.kinds for kind in kinds)}:
            for ending in ("", ".", ","):  # a closing bracket merges with what follows
                used.update(self.tokenizer.encode(text + ending))
        for template in (PHOTO, *OF_A_KIND):
            used.update(self._around(template.replace("{kind}", "")))
        return sorted(used)

    def token_meanings(self, vocabulary: list[int]) -> Tensor:
        """(V, E): of each token, the mean of what the words with it show; shorter words count more. Zero if in none."""
        position = {token: row for row, token in enumerate(vocabulary)}
        sums, weights = torch.zeros(len(vocabulary), self.shown.shape[1]), torch.zeros(len(vocabulary), 1)
        for ids, target in zip(self.ids, self.shown, strict=True):
            for token in ids:
                sums[position[token]] += target / len(ids) ** 2
                weights[position[token]] += 1 / len(ids) ** 2
        return sums / weights.clamp(min=1e-9)

    def batch(self, step: int, size: int) -> Batch:
        """The prompts of one training step."""
        rng = random.Random(f"{self.seed} {step}")
        rows, targets = [], []
        for group, share in GROUPS.items():
            for _ in range(round(size * share)):
                index = rng.choice(self.groups[group])
                context, target = self._draw(rng, index)
                text = context.before + self.texts[index] + context.after
                rows.append(self.row(text, context.fillers))
                targets.append(target if context.shift is None else target + context.shift)
        return Batch(rows, F.normalize(torch.stack(targets), dim=-1))

    def row(self, text: str, fillers: tuple[int, ...] = ()) -> list[int]:
        """Token ids of a whole text, with [SOS], fillers if any, and [EOS]."""
        tokens = [*fillers, *self.tokenizer.encode(text)]
        return [self.tokenizer.sot_token_id, *tokens[: CONTEXT_LENGTH - 2], self.tokenizer.eot_token_id]

    def _draw(self, rng: random.Random, index: int) -> tuple[Context, Tensor]:
        """A context for a word, and the word's own part of the target."""
        kind = rng.choices(list(KINDS_OF_PROMPT), KINDS_OF_PROMPT.values())[0]
        if kind == "bare":
            return Context("", rng.choice([".", ""])), self.bare[index]
        if kind == "fillers":
            return self._fillers(rng), self.shown[index]
        if kind == "kind" and self.kinds[index]:
            template = rng.choice(OF_A_KIND).replace("{kind}", rng.choice(self.kinds[index]))
            return Context(*template.split("{}")), self.shown[index]
        if rng.random() < PHOTO_SHARE:
            return Context(*PHOTO.split("{}")), self.shown[index]
        return rng.choice(self.contexts), self.shown[index]

    def _fillers(self, rng: random.Random) -> Context:
        """Random words before the name, as a learned context stands: half of them nouns that add what they mean."""
        tokens, added = [], []
        for _ in range(rng.randint(1, MOST_FILLERS)):
            if rng.random() < 0.5:
                tokens.append(rng.choice(self.neutral))
            else:
                index = rng.choice(self.single)
                tokens += self.ids[index]
                added.append(self.shown[index])
        shift = self.strength * sum(added) / len(added) ** 0.5 if added else None
        return Context("", ".", shift, tuple(tokens))
