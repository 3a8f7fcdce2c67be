"""The strings of a tokenizer's ids."""

import unicodedata
from typing import NamedTuple

from open_clip import SimpleTokenizer


class Token(NamedTuple):
    """A token as text, and whether it is a whole word: neither special, nor a part of a word, nor of a character."""

    text: str
    is_word: bool


def vocabulary(tokenizer, size: int) -> list[Token]:
    """The tokens of ids 0 to size - 1.

    Args:
        tokenizer: open_clip's, of either kind.
        size: the number of rows of the token embedding.
    """
    if isinstance(tokenizer, SimpleTokenizer):
        special = set(tokenizer.all_special_ids)
        return [_byte_pair(tokenizer, index, index in special) for index in range(size)]
    own = tokenizer.tokenizer
    special = set(own.all_special_ids)
    texts = own.convert_ids_to_tokens(list(range(min(size, len(own)))))
    known = [Token(text, index not in special and _starts_a_word(text)) for index, text in enumerate(texts)]
    return known + [Token(f"<{index}>", False) for index in range(len(known), size)]


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
