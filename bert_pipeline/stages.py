"""The stages of the pipeline: one record each, in the order in which they run.

`cli.py` makes a command of each stage, `recipe.py` runs them in order, `api.py` calls them from
Python. A new stage is one module with its config and function, and one record here.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from bert_pipeline.config import ShardedConfig, StageConfig
from bert_pipeline.corpus.config import CorpusConfig
from bert_pipeline.examples.config import ExamplesConfig
from bert_pipeline.finetuning.config import FinetuneConfig
from bert_pipeline.pretraining.config import PretrainConfig
from bert_pipeline.tokenizer.config import TokenizeConfig
from bert_pipeline.training.config import TrainConfig


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage: its config, its function, and its folder in a run."""

    config: type[StageConfig]
    entry: str
    """The function of the config that runs the stage, as "module:function"."""
    help: str
    """The help text of its command; empty for a stage that only recipes have."""
    folder: str
    inputs: Mapping[str, str] = field(default_factory=dict)
    """The stages whose folders it reads, by the option that takes the folder."""
    variant_of: str | None = None
    """The stage whose options it takes where its own section has none."""
    is_optional: bool = False
    """Whether a recipe runs it only if there is a section for it."""

    def run(self, config: StageConfig) -> None:
        """Run the stage, in several processes if its config says so; loads the libraries."""
        if isinstance(config, ShardedConfig) and config.engine == "local" and config.workers > 1:
            from bert_pipeline.engine.processes import prepare_processes

            prepare_processes()
        if isinstance(config, TrainConfig) and config.starts_processes:
            from bert_pipeline.training.launch import launch

            launch(self.entry, config)
        else:
            module, _, function = self.entry.partition(":")
            getattr(importlib.import_module(module), function)(config)


STAGES: dict[str, Stage] = {
    "corpus": Stage(
        CorpusConfig,
        "bert_pipeline.corpus.build:build_corpus",
        "Read sources and write clean documents in parquet.",
        folder="corpus",
    ),
    "tokenize": Stage(
        TokenizeConfig,
        "bert_pipeline.tokenizer.train:train_tokenizer",
        "Train a tokenizer on a corpus, or take or extend an existing one, and measure it.",
        folder="tokenizer",
        inputs={"corpus": "corpus"},
    ),
    "examples": Stage(
        ExamplesConfig,
        "bert_pipeline.examples.build:build_examples",
        "Make masked training examples from a corpus and a tokenizer.",
        folder="examples",
        inputs={"corpus": "corpus", "tokenizer": "tokenize"},
    ),
    "long_examples": Stage(
        ExamplesConfig,
        "bert_pipeline.examples.build:build_examples",
        "",
        folder="examples-long",
        inputs={"corpus": "corpus", "tokenizer": "tokenize"},
        variant_of="examples",
        is_optional=True,
    ),
    "pretrain": Stage(
        PretrainConfig,
        "bert_pipeline.pretraining.pretrain:pretrain",
        "Pretrain BERT on examples, or resume a stopped run.",
        folder="pretrain",
        inputs={
            "examples": "examples",
            "long_examples": "long_examples",
            "tokenizer": "tokenize",
        },
    ),
    "finetune": Stage(
        FinetuneConfig,
        "bert_pipeline.finetuning.finetune:finetune",
        "Fine-tune a model on labelled rows, or resume a stopped run.",
        folder="finetune",
        inputs={"model": "pretrain"},
        is_optional=True,
    ),
}
