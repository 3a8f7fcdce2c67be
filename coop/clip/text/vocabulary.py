"""The strings of a tokenizer's ids."""

import unicodedata
from collections.abc import Iterable
from typing import NamedTuple

from open_clip import SimpleTokenizer


class Token(NamedTuple):
    """A token as text, and whether it is a whole word: neither special, nor a part of a word, nor of a character."""

    text: str
    is_word: bool


def vocabulary(tokenizer, ids: Iterable[int]) -> list[Token]:
    """The tokens of some ids.

    Args:
        tokenizer: open_clip's, of either kind.
        ids: rows of the token embedding.
    """
    if isinstance(tokenizer, SimpleTokenizer):
        special = set(tokenizer.all_special_ids)
        return [_byte_pair(tokenizer, index, index in special) for index in ids]
    own = tokenizer.tokenizer
    special = set(own.all_special_ids)
    texts = {index: own.convert_ids_to_tokens(index) if index < len(own) else f"<{index}>" for index in ids}
    return [
        Token(text, index < len(own) and index not in special and _starts_a_word(text)) for index, text in texts.items()
    ]


def _byte_pair(tokenizer: SimpleTokenizer, index: int, special: bool) -> Token:
    """CLIP's own tokens spell bytes as characters and mark the end of a word with "</w>"."""
    spelt = tokenizer.decoder.get(index, f"<{index}>")
    if special or index not in tokenizer.decoder:
        return Token(spelt, False)
    ends_word = spelt.endswith("</w>")
    raw = bytearray(tokenizer.byte_decoder[character] for character in spelt.removesuffix("</w>"))
    try:
        text = raw.decode()
    except UnicodeDecodeError:  # part of a character
        return Token(f"<{raw.hex()}>", False)
    readable = bool(text) and all(unicodedata.category(character)[0] != "C" for character in text)
    return Token(text if ends_word else f"{text}-", ends_word and readable)


def _starts_a_word(text: str) -> bool:
    """SentencePiece marks the start of a word with a low line of its own; without one, it goes on with a word."""
    return len(text) > 1 and text[0] in "\N{LOWER ONE EIGHTH BLOCK}\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}"
