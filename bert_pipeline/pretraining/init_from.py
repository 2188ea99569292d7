"""`--init-from`: weights and config of an existing model, for another tokenizer if need be.

Continued pretraining (Gururangan et al. 2020, https://arxiv.org/abs/2004.10964): a new run, with a
new optimizer and learning-rate schedule, that starts from the weights of a model.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from bert_pipeline.errors import BertpipeError
from bert_pipeline.model.pretraining_model import make_network
from bert_pipeline.model.vocabulary import VocabularySources, copy_weights
from bert_pipeline.predict.load import (
    CONFIG,
    WEIGHTS,
    find_model,
    hash_model,
    load_with_new_heads,
    weight_files,
)
from bert_pipeline.storage.manifest import Input
from bert_pipeline.tokenizer.load import (
    TOKENIZER_FILES,
    LoadedTokenizer,
    is_hub_name,
    load_tokenizer,
)
from bert_pipeline.tokenizer.sub_tokens import shared_entries, sub_tokens_of_new_entries


@dataclass(frozen=True, slots=True)
class StartingModel:
    """The model that a run starts from."""

    name: str
    """As it was given."""
    folder: Path
    tokenizer: LoadedTokenizer

    @classmethod
    def find(cls, name: str, revision: str | None, *, quiet: bool) -> Self:
        """A folder, or a name on the Hub, of which only safetensors are downloaded.

        Raises `BertpipeError` if there is no such model, or if it has no tokenizer.
        """
        folder = find_start(name, revision, quiet=quiet)
        return cls(name, folder, load_tokenizer(folder))

    def describe(self, out: Path) -> Input:
        """The record of the model for the manifest."""
        path = os.path.relpath(self.folder.resolve(), out.resolve())
        return Input(path=path, fingerprint=hash_model(self.folder))

    def load(
        self, config: Any, tokenizer: LoadedTokenizer, *, with_pairs: bool
    ) -> tuple[Any, list[str]]:
        """The network of `config` for `tokenizer`, and the names of weights that the model lacks.

        `config` is that of the model with the tokenizer's vocabulary. Weights of heads that the
        model lacks are random. Raises `BertpipeError` if it is damaged or its encoder incomplete.
        """
        network = make_network(config, with_pairs=with_pairs)
        old, missing = load_with_new_heads(self.folder, type(network))
        copy_weights(old, network, self.vocabulary_sources(tokenizer), missing)
        return network, missing

    def describe_difference(self, tokenizer: LoadedTokenizer, new_heads: Sequence[str]) -> str:
        """What a network for a tokenizer has that the model has not, as text."""
        parts = [f"starting from {self.name}"]
        sources = self.vocabulary_sources(tokenizer)
        if sources is not None:
            new = tokenizer.vocab_size - len(shared_entries(self.tokenizer, tokenizer))
            parts.append(f"{new:,} new vocabulary entries (means of their sub-tokens)")
        if new_heads:
            parts.append(f"random weights in new heads: {', '.join(new_heads)}")
        return "; ".join(parts)

    def vocabulary_sources(self, tokenizer: LoadedTokenizer) -> VocabularySources | None:
        """For each id of a tokenizer the ids of the model's own; None where they are the same.

        An entry that the model's tokenizer has too is itself, a special token the one with the same
        role, and any other entry the sub-tokens that it was split into.
        """
        if self.tokenizer.tokenizer.get_vocab() == tokenizer.tokenizer.get_vocab():
            return None
        found = {new: [old] for new, old in shared_entries(self.tokenizer, tokenizer).items()}
        found |= sub_tokens_of_new_entries(self.tokenizer, tokenizer)
        return [found.get(number, []) for number in range(tokenizer.vocab_size)]


def find_start(name: str, revision: str | None, *, quiet: bool) -> Path:
    """The folder of a model, which is downloaded if `name` is one on the Hub.

    Raises `BertpipeError` if there is no such model, or if it has no safetensors.
    """
    path = Path(name).expanduser()
    if path.exists() or not is_hub_name(name):
        folder = find_model(path)
    else:
        from bert_pipeline.hub.downloads import download_files

        patterns = [CONFIG, *WEIGHTS, *TOKENIZER_FILES]
        folder = download_files(name, revision, patterns, max_wait=120, quiet=quiet)
    if not weight_files(folder):
        raise BertpipeError(
            f"{name}: no model.safetensors found. Weights in other formats are not loaded; "
            "convert them with save_pretrained of transformers."
        )
    return folder
