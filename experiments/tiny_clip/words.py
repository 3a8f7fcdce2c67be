"""The words that the text tower learns, and the meanings that a photograph of each can show."""

from collections import defaultdict
from typing import NamedTuple

from open_clip import IMAGENET_CLASSNAMES
from timm.data import ImageNetInfo
from wordnet import WordNet

# Subject files (lexnames(5WN)) of what can be photographed: animals, artefacts, the body, food, natural objects,
# persons, plants, substances.
PHYSICAL = {5, 6, 8, 13, 17, 18, 20, 27}
RARE_UNLESS_IN_USE = {8, 18, 20, 27}  # of these, WordNet has thousands of names that only specialists know
BROADEST = 450  # a hypernym of more classes than this ("entity") says nothing
LONGEST_NAME = 24
SENSES = 4  # rarer senses than the fourth are not what is meant by the bare word


class Word(NamedTuple):
    """A text and what it may mean.

    Attributes:
        text: as it stands in a prompt.
        group: "name" (of an ImageNet class), "synonym", "hypernym" (of several classes), or "noun" (any other).
        shown: synsets that a photograph of it can show.
        senses: synsets that the bare word can mean, the most frequent first; those of `shown` among them.
    """

    text: str
    group: str
    shown: tuple[int, ...]
    senses: tuple[int, ...]


def imagenet_synsets() -> list[int]:
    """The 1000 classes' synset offsets, in the order of the classifier's rows."""
    info = ImageNetInfo("imagenet-1k")
    return [int(info.index_to_label_name(index)[1:]) for index in range(len(IMAGENET_CLASSNAMES))]


def spelled(lemma: str) -> str:
    """A lemma as it stands in a sentence."""
    return lemma.replace("_", " ")


def classes_below(wordnet: WordNet, leaves: list[int]) -> dict[int, list[int]]:
    """Synset to the indices of the ImageNet classes (`leaves`) that are kinds of it."""
    below = defaultdict(list)
    for index, leaf in enumerate(leaves):
        for offset in sorted(wordnet.ancestors(leaf)):
            below[offset].append(index)
    return dict(below)


def collect_words(wordnet: WordNet, leaves: list[int]) -> list[Word]:
    """All words, each text once: class names first, then their synonyms and hypernyms, then other nouns."""
    below = classes_below(wordnet, leaves)
    hypernyms = [offset for offset, classes in below.items() if offset not in set(leaves) and len(classes) <= BROADEST]
    shown = {name: ("name", [leaf]) for name, leaf in zip(IMAGENET_CLASSNAMES, leaves, strict=True)}
    spellings = {name.lower(): name for name in shown}
    for group, offsets in (("synonym", leaves), ("hypernym", sorted(hypernyms))):
        for offset in offsets:
            for lemma in wordnet.synsets[offset].lemmas:
                text = spellings.setdefault(spelled(lemma).lower(), spelled(lemma))
                if shown.setdefault(text, (group, []))[0] != "name":  # open_clip's name of a class has precedence
                    shown[text][1].append(offset)
    for lemma, offset in other_nouns(wordnet):
        text = spelled(lemma)
        if text not in spellings:
            shown[text] = ("noun", [offset])
    return [_word(wordnet, text, group, tuple(offsets)) for text, (group, offsets) in shown.items()]


def other_nouns(wordnet: WordNet) -> list[tuple[str, int]]:
    """Further nouns that are no names, with the most frequent synset of each that can be photographed."""
    found = []
    for lemma, offsets in wordnet.senses.items():
        physical = [offset for offset in offsets[:SENSES] if wordnet.synsets[offset].lexicographer in PHYSICAL]
        if physical and _is_plain(lemma) and _is_common(wordnet, lemma, physical[0]):
            found.append((lemma, physical[0]))
    return found


def _is_plain(lemma: str) -> bool:
    plain = lemma.replace("_", "").replace("-", "").isalpha()
    return plain and lemma.count("_") <= 2 and len(lemma) <= LONGEST_NAME


def _is_common(wordnet: WordNet, lemma: str, offset: int) -> bool:
    synset = wordnet.synsets[offset]
    if any(written[0].isupper() for written in synset.lemmas if written.lower() == lemma):
        return False  # a proper name or the Latin name of a genus
    if lemma in wordnet.in_use or synset.lexicographer not in RARE_UNLESS_IN_USE:
        return True
    return "_" not in lemma and synset.lexicographer != 18


def _word(wordnet: WordNet, text: str, group: str, shown: tuple[int, ...]) -> Word:
    senses = wordnet.senses.get(text.lower().replace(" ", "_"), [])[:SENSES]
    return Word(text, group, shown, tuple(dict.fromkeys([*senses, *shown])))
