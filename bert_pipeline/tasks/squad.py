"""Exact match and F1 of answers, by the rule of SQuAD.

Rajpurkar et al. 2016, section 6.1 (https://arxiv.org/abs/1606.05250); questions without an answer:
Rajpurkar et al. 2018 (https://arxiv.org/abs/1806.03822).
"""

import re
import string
from collections import Counter
from collections.abc import Sequence

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalize_answer(text: str) -> str:
    """The text in lower case, without punctuation, articles and repeated spaces."""
    without = text.lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", without).split())


def exact_match(answer: str, gold: str) -> float:
    """1.0 if both are the same after normalization, else 0.0."""
    return float(normalize_answer(answer) == normalize_answer(gold))


def answer_f1(answer: str, gold: str) -> float:
    """F1 of the words that both have in common; of empty answers whether both are empty."""
    found = normalize_answer(answer).split()
    wanted = normalize_answer(gold).split()
    if not found or not wanted:
        return float(found == wanted)
    common = (Counter(found) & Counter(wanted)).total()
    if not common:
        return 0.0
    precision = common / len(found)
    recall = common / len(wanted)
    return 2 * precision * recall / (precision + recall)


def score_answers(answers: Sequence[str], golds: Sequence[Sequence[str]]) -> dict[str, float]:
    """Mean exact match and F1 in percent, each with the best of a question's right answers.

    The right answer to a question without an answer is the empty text; such questions have figures
    of their own if there are some.
    """
    exact = []
    f1 = []
    for answer, gold in zip(answers, golds, strict=True):
        # Answers that normalize to nothing do not count, as in the official script.
        right = [text for text in gold if normalize_answer(text)] or [""]
        exact.append(max(exact_match(answer, text) for text in right))
        f1.append(max(answer_f1(answer, text) for text in right))
    result = {"exact_match": _percent(exact), "f1": _percent(f1)}
    if all(golds):
        return result
    for name, has_answer in (("answerable", True), ("unanswerable", False)):
        some = [value for value, gold in zip(f1, golds, strict=True) if bool(gold) == has_answer]
        result[f"f1_{name}"] = _percent(some)
    return result


def _percent(values: Sequence[float]) -> float:
    return 100 * sum(values) / max(1, len(values))
