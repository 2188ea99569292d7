"""The command line: one short function a command. Heavy libraries are imported inside the bodies."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from bert_pipeline.corpus.config import CorpusConfig
from bert_pipeline.errors import BertpipeError
from bert_pipeline.examples.config import ExamplesConfig
from bert_pipeline.options import stage_command
from bert_pipeline.tokenizer.config import TokenizeConfig
from bert_pipeline.training.config import PretrainConfig

app = typer.Typer(
    name="bertpipe",
    help="From raw text to a pretrained BERT: corpus → tokenize → examples → pretrain, or `run` for all of them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@stage_command(app, "corpus", CorpusConfig)
def corpus(config: CorpusConfig) -> None:
    """Turn sources into clean documents in parquet."""
    from bert_pipeline.corpus.build import build_corpus

    build_corpus(config)


@stage_command(app, "tokenize", TokenizeConfig)
def tokenize(config: TokenizeConfig) -> None:
    """Train a WordPiece or byte-level BPE tokenizer on a corpus."""
    from bert_pipeline.tokenizer.train import train_tokenizer

    train_tokenizer(config)


@stage_command(app, "examples", ExamplesConfig)
def examples(config: ExamplesConfig) -> None:
    """Make masked examples from a corpus and a tokenizer."""
    from bert_pipeline.examples.build import build_examples

    build_examples(config)


@stage_command(app, "pretrain", PretrainConfig)
def pretrain(config: PretrainConfig) -> None:
    """Pretrain BERT on examples, or go on where a stopped run was."""
    from bert_pipeline.training.launch import run_pretrain

    run_pretrain(config)


def main() -> None:
    app()


if __name__ == "__main__":
    main()
