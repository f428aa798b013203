"""Scores of an answer against the right one: token F1, as SQuAD has it.

Rajpurkar et al. 2016: both texts in lower case, without ASCII punctuation and the articles a, an,
the; then the F1 of the two bags of words. Words are what stands between white space, so that texts
of scripts without blanks are one word.
"""

from __future__ import annotations

import re
import string
from collections import Counter

ARTICLES = re.compile(r"\b(a|an|the)\b")
WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised_words(text: str) -> list[str]:
    """The words of a text that count, in their order."""
    plain = text.lower().translate(WITHOUT_PUNCTUATION)
    return ARTICLES.sub(" ", plain).split()


def token_f1(answer: str, target: str) -> float:
    """F1 of the words of an answer, 0 to 1.

    Where one of the texts has no words that count, 1 if neither has any, else 0.
    """
    words = normalised_words(answer)
    target_words = normalised_words(target)
    if not words or not target_words:
        return float(words == target_words)

    shared = (Counter(words) & Counter(target_words)).total()
    if not shared:
        return 0.0
    precision = shared / len(words)
    recall = shared / len(target_words)
    return 2 * precision * recall / (precision + recall)
