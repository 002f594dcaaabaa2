"""Titles as people spell them in different places."""

from __future__ import annotations

import html
import re
import unicodedata

__all__ = ["normalise_title"]

_MARKS = str.maketrans("", "", "™®©'’`")


def normalise_title(title: str) -> str:
    """Returns a title without what differs between copies of it.

    HTML entities are resolved, trademark signs, accents and apostrophes removed, "&" becomes
    "and", letters become lower case and other punctuation becomes one space.
    """
    plain = unicodedata.normalize("NFKD", html.unescape(title).translate(_MARKS))
    letters = "".join(c for c in plain if not unicodedata.combining(c)).lower()
    return re.sub(r"[\W_]+", " ", letters.replace("&", " and ")).strip()
