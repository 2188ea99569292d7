"""bertpipe: from raw text to a pretrained BERT.

The functions are documented in `bert_pipeline.api`; they are loaded when they are first used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bert_pipeline.api import (
        build_corpus,
        build_examples,
        embed,
        evaluate,
        evaluate_cloze,
        evaluate_minimal_pairs,
        evaluate_pseudo_perplexity,
        evaluate_text,
        export,
        fill_mask,
        finetune,
        predict,
        pretrain,
        run_recipe,
        train_tokenizer,
        verify,
    )

__all__ = [
    "build_corpus",
    "build_examples",
    "embed",
    "evaluate",
    "evaluate_cloze",
    "evaluate_minimal_pairs",
    "evaluate_pseudo_perplexity",
    "evaluate_text",
    "export",
    "fill_mask",
    "finetune",
    "predict",
    "pretrain",
    "run_recipe",
    "train_tokenizer",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from bert_pipeline import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
