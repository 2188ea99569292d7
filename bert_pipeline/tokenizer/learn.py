"""Training a new tokenizer on a corpus, or on a sample of it."""

import os
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer

from bert_pipeline.progress import print_line
from bert_pipeline.storage.manifest import Manifest
from bert_pipeline.tokenizer.config import TokenizeConfig
from bert_pipeline.tokenizer.kinds import KINDS
from bert_pipeline.tokenizer.sample import Sample, choose_sample_mb
from bert_pipeline.tokenizer.special_tokens import (
    SPECIALS,
    register_special_tokens,
    set_post_processor,
)


def set_threads(workers: int) -> None:
    """Set the threads of the library, before it is used for the first time."""
    # The Rust side reads these when its thread pool starts for the first time.
    os.environ["RAYON_NUM_THREADS"] = str(workers)
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if workers > 1 else "false"


def learn_vocabulary(
    config: TokenizeConfig, corpus: Manifest, paragraphs: Sequence[str]
) -> tuple[Tokenizer, dict[str, Any]]:
    """Train a tokenizer; returns it and figures of the training for the manifest.

    `paragraphs`, some of the text, decide how large a sample fits into memory. A text that cannot
    fill the vocabulary gives a smaller one, and a line says so. Raises `BertpipeError` when the
    vocabulary is too small for the characters of the text.
    """
    set_threads(config.workers)
    kind = KINDS[config.kind]
    untrained = kind.new(config)
    megabytes = config.sample_mb or choose_sample_mb(untrained, paragraphs)
    sample = Sample(config.corpus, corpus, megabytes, config.seed, config.quiet)
    tokenizer, counts = kind.learn(untrained, sample, config)
    size = tokenizer.get_vocab_size()
    if size < config.vocab_size:
        print_line(
            f"tokenizer: {size:,} entries instead of {config.vocab_size:,} (--vocab-size): the "
            "text has no more.",
            quiet=config.quiet,
        )
    specials = SPECIALS[config.specials]
    register_special_tokens(tokenizer, specials)
    set_post_processor(tokenizer, specials["cls"], specials["sep"])
    return tokenizer, counts | sample.to_json()
