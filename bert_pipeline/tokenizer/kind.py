"""What a kind of tokenizer is: the record that the registry in `kinds.py` lists.

Loads without the `tokenizers` library, because the options in `--help` come from the registry.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer, models

    from bert_pipeline.tokenizer.config import TokenizeConfig
    from bert_pipeline.tokenizer.sample import Sample


@dataclass(frozen=True, slots=True)
class TokenizerKind:
    """One kind of tokenizer that can be trained; `kinds.py` lists them all."""

    name: str
    """Value of `--kind`."""
    options: tuple[str, ...]
    """Fields of `TokenizeConfig` that only this kind has."""
    special_token_sets: tuple[str, ...]
    """Values of `--specials` that it supports."""
    new: Callable[[TokenizeConfig], Tokenizer]
    """Makes an untrained tokenizer, with its normalizer and pre-tokenizer."""
    learn: Callable[[Tokenizer, Sample, TokenizeConfig], tuple[Tokenizer, dict[str, Any]]]
    """Trains it on a sample; returns the trained tokenizer and figures for the manifest."""


def with_model(trained: Tokenizer, model: models.Model) -> Tokenizer:
    """A tokenizer with the given model, and the normalizer and pre-tokenizer of `trained`."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer(model)
    tokenizer.normalizer = trained.normalizer
    tokenizer.pre_tokenizer = trained.pre_tokenizer
    return tokenizer
