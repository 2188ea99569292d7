"""The step `mojibake`: fixes text that was decoded with the wrong encoding.

Uses ftfy (Speer, 2019, https://ftfy.readthedocs.io).
"""

import re

from ftfy import fix_encoding
from ftfy.badness import MOJIBAKE_CATEGORIES

# ftfy changes only text with one of these characters (they are in every alternative of its
# `BADNESS_RE`), and searching for them is several times faster than asking ftfy.
_CATEGORIES = ("c1", "bad", "law", "currency", "numeric", "box", "lower_accented", "upper_accented")
_SIGNS = re.compile(
    "["
    + "".join(MOJIBAKE_CATEGORIES[category] for category in _CATEGORIES)
    + "ÂÃÎÐØÙàŒœ√≈‚ВГРСвβΒΓΞΟā×]"
)


def fix_mojibake(text: str) -> str:
    """Fix each line, because a page may mix encodings; quotes, ligatures and widths stay."""
    if not _SIGNS.search(text):
        return text
    return "\n".join(
        fix_encoding(line) if _SIGNS.search(line) else line for line in text.split("\n")
    )
