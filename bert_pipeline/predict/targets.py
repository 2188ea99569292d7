"""`--targets`: the only words that may fill a mask."""

from collections.abc import Sequence
from typing import Any

from bert_pipeline.errors import UsageError

SHOWN = 5
"""Tokens of a target in an error message."""


def find_target_ids(tokenizer: Any, targets: Sequence[str]) -> list[int]:
    """The ids of the targets, ascending, each once.

    As in the pipeline of transformers, a target is an entry of the vocabulary, or else is encoded.
    Raises `UsageError` for targets that are not one known token: the score of a part of a word is
    not that of the word.
    """
    vocabulary = tokenizer.get_vocab()
    ids = set()
    problems = []
    for target in targets:
        if (entry := vocabulary.get(target)) is not None:
            ids.add(entry)
            continue
        tokens = tokenizer(target, add_special_tokens=False)["input_ids"]
        if len(tokens) == 1 and tokens[0] != tokenizer.unk_token_id:
            ids.add(tokens[0])
        else:
            problems.append(_explain(target, tokenizer.convert_ids_to_tokens(tokens)))
    if problems:
        raise UsageError(
            f"--targets: {'; '.join(problems)}. Give words that are one token of this model."
        )
    if not ids:
        raise UsageError("--targets: give at least one word.")
    return sorted(ids)


def _explain(target: str, tokens: list[str]) -> str:
    shown = " ".join(tokens[:SHOWN]) + (" …" if len(tokens) > SHOWN else "")
    if len(tokens) <= 1:
        return f"{target!r} is not in the vocabulary"
    return f"{target!r} is {len(tokens)} tokens ({shown})"
