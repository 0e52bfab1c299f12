"""Name characters that look like others: blanks that are no spaces, letters of other alphabets."""

import re
import unicodedata
from typing import Final

_DASHES: Final = "\u2010\u2011\u2012\u2013\u2014\u2212"
_QUOTES: Final = "\u201c\u201d\u201e\u2018\u2019"
_BLANKS: Final = "\u00a0\u1680\u2000-\u200d\u202f\u205f\u2060\u3000\ufeff"
"""Blanks, and marks of no width, as a class of regular expressions lists them."""
_CYRILLIC: Final = (
    "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u0458\u0455\u0501\u04bb\u051b\u051d\u04cf"
    "\u0410\u0412\u0415\u041a\u041c\u041d\u041e\u0420\u0421\u0422\u0423\u0425\u0406\u0408\u0405"
)
_GREEK: Final = (
    "\u03bf\u03bd\u03c1\u03b1\u03b9\u03ba\u03c5\u03c7"
    "\u0391\u0392\u0395\u0396\u0397\u0399\u039a\u039c\u039d\u039f\u03a1\u03a4\u03a5\u03a7"
)
_ALIKE: Final = {
    **dict(zip(_CYRILLIC, "aeopcyxijsdhqwlABEKMHOPCTYXIJS", strict=True)),
    **dict(zip(_GREEK, "ovpaikuxABEZHIKMNOPTYX", strict=True)),
    **dict.fromkeys(_DASHES, "-"),
    **dict(zip(_QUOTES, ('"', '"', '"', "'", "'"), strict=True)),
}
_QUOTED_OR_COMMENT: Final = re.compile(r""""(?:[^"\\]|\\.)*"|'(?:[^']|'')*'|(?:^|\s)#.*""")
_MISREAD: Final = re.compile(
    rf"^\s*?(?P<indent>[{_BLANKS}])"
    rf"|^ *-(?P<item>[{_BLANKS}])"
    rf"|:(?P<value>[{_BLANKS}])"
    r"|(?P<colon>\uff1a)"
    rf"|^ *(?P<dash>[{_DASHES}])\s"
    rf"|(?:[:,\[{{-]\s+|^ *)(?P<quote>[{_QUOTES}])"
)
"""Where YAML reads such a character otherwise than its look says."""


def name_odd_character(word: str) -> str:
    """`'е' is U+0435 (Cyrillic small letter ie), not 'e'` of the first that looks like a plain one; else ''.

    A word that is written in another alphabet throughout is not odd.
    """
    if not "".join(_fold(letter) for letter in word).isascii():
        return ""
    for letter in word:
        if not letter.isascii():
            plain = _name_plain(letter)
            return f"it holds {_name(letter)}, {f'not {plain}' if plain else 'which cannot be seen'}"
    return ""


def find_misread_character(line: str) -> tuple[int, str, str] | None:
    """Column (from 0), message and hint of the first character of a line that YAML reads otherwise."""
    masked = _QUOTED_OR_COMMENT.sub(lambda found: " " * len(found[0]), line)
    found = _MISREAD.search(masked)
    if found is None:
        return None
    column = found.start(str(found.lastgroup))
    plain = _name_plain(line[column])
    if not plain:
        return column, f"{_name(line[column])}, which cannot be seen", "remove it"
    return column, f"{_name(line[column])} where YAML wants {plain}", f"write {plain}"


def _fold(letter: str) -> str:
    """The plain character that it looks like, '' of a mark without width."""
    if letter in _ALIKE:
        return _ALIKE[letter]
    if unicodedata.category(letter) == "Cf":
        return ""
    return unicodedata.normalize("NFKC", letter)


def _name(letter: str) -> str:
    name = unicodedata.name(letter, "without a name").lower()
    for alphabet in ("cyrillic", "greek"):
        name = name.replace(alphabet, alphabet.title())
    return f"U+{ord(letter):04X} ({name})"


def _name_plain(letter: str) -> str:
    """As a message names the plain character, '' of a mark without width."""
    plain = _fold(letter)
    if plain == " ":
        return "a plain space"
    return repr(plain) if plain else ""
