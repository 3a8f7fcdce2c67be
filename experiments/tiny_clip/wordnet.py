"""WordNet's nouns, read from the dictionary files that Debian's package `wordnet-base` installs (format: wndb(5WN))."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from coop.errors import CoopError

HYPERNYM = ("@", "@i")  # "is a kind of", "is an instance of"


class Synset(NamedTuple):
    """One meaning of one or more nouns."""

    lexicographer: int  # the number of its subject file (lexnames(5WN)): 5 is animals, 6 is artefacts, ...
    lemmas: tuple[str, ...]  # as written, with underscores
    hypernyms: tuple[int, ...]
    definition: str


@dataclass
class WordNet:
    """Nouns and their meanings; a synset goes by its offset, which ImageNet's "n02084071" is made of, too.

    Attributes:
        synsets: by offset.
        senses: lower-case lemma to the offsets of its synsets, the most frequent one first.
        in_use: the lemmas of which any sense was met in the texts that WordNet's makers tagged.
    """

    synsets: dict[int, Synset]
    senses: dict[str, list[int]]
    in_use: set[str]
    _ancestors: dict[int, frozenset[int]] = field(default_factory=dict)

    def ancestors(self, offset: int) -> frozenset[int]:
        """The synset itself and all that it is a kind of."""
        if offset not in self._ancestors:
            above = (self.ancestors(hypernym) for hypernym in self.synsets[offset].hypernyms)
            self._ancestors[offset] = frozenset({offset}).union(*above)
        return self._ancestors[offset]


def read_wordnet(folder: Path) -> WordNet:
    """Read `data.noun` and `index.noun`.

    Raises:
        CoopError: a file is missing or is not in WordNet's format.
    """
    synsets = dict(_synset(fields, text) for fields, text in _rows(folder / "data.noun"))
    senses, in_use = {}, set()
    for fields, _ in _rows(folder / "index.noun"):
        count, first = int(fields[2]), 6 + int(fields[3])  # lemma, part of speech, senses, pointers, ..., two counts
        senses[fields[0]] = [int(offset) for offset in fields[first : first + count]]
        if int(fields[first - 1]):
            in_use.add(fields[0])
    return WordNet(synsets, senses, in_use)


def _rows(path: Path) -> Iterator[tuple[list[str], str]]:
    """The fields of each line, and the text after its bar; lines that begin with a space are the licence."""
    if not path.is_file():
        raise CoopError(
            f"{path}: WordNet's dictionary is not there; install it (apt-get install wordnet-base) "
            "or say where it is (--wordnet FOLDER, the folder that holds data.noun and index.noun)"
        )
    for number, line in enumerate(path.read_text(encoding="latin-1").splitlines(), start=1):
        if line.startswith(" "):
            continue
        record, _, text = line.partition("| ")
        fields = record.split()
        if len(fields) < 6 or "n" not in (fields[1], fields[2]):
            raise CoopError(f"{path}, line {number}: not a line of WordNet's noun files: {line[:60]!r}")
        yield fields, text


def _synset(fields: list[str], text: str) -> tuple[int, Synset]:
    offset, lexicographer, _, count = fields[:4]
    pointers = 5 + 2 * int(count, 16)  # each lemma has a number beside it, after which comes the number of pointers
    lemmas = tuple(fields[4 : pointers - 1 : 2])
    symbols, targets = fields[pointers::4], fields[pointers + 1 :: 4]
    hypernyms = tuple(int(target) for symbol, target in zip(symbols, targets, strict=False) if symbol in HYPERNYM)
    definition = text.split('; "')[0].strip()  # examples of use follow in quotes
    return int(offset), Synset(int(lexicographer), lemmas, hypernyms, definition)
