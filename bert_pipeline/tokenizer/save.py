"""Saving a tokenizer for `AutoTokenizer.from_pretrained`, with the layout of the examples."""

from pathlib import Path
from tempfile import TemporaryDirectory

from tokenizers import Tokenizer

from bert_pipeline.tokenizer.load import LoadedTokenizer, special_tokens
from bert_pipeline.tokenizer.prefix_space import set_prefix_space
from bert_pipeline.tokenizer.special_tokens import set_post_processor


def use_examples_layout(loaded: LoadedTokenizer) -> tuple[Tokenizer, dict[str, str]]:
    """Make the tokenizer encode texts as examples are laid out, without truncation or padding.

    A tokenizer that adds a space before a text adds none after a mask, where no example has one.
    Returns the tokenizer and its special tokens by role.
    """
    tokenizer, _ = set_prefix_space(loaded.tokenizer, "first")
    specials = special_tokens(loaded)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = False
    set_post_processor(tokenizer, specials["cls"], specials["sep"])
    return tokenizer, specials


def save_pretrained(
    tokenizer: Tokenizer, specials: dict[str, str], folder: Path, max_length: int | None = None
) -> list[Path]:
    """Write `tokenizer.json` and `tokenizer_config.json`; returns the files.

    `max_length` becomes `model_max_length`.
    """
    from transformers import PreTrainedTokenizerFast

    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **{f"{role}_token": token for role, token in specials.items()},
        **({} if max_length is None else {"model_max_length": max_length}),
    )
    # Written to a temporary folder, so that no incomplete file has its final name.
    with TemporaryDirectory(dir=folder, prefix=".", suffix=".tmp") as temporary:
        wrapped.save_pretrained(temporary)
        return [
            Path(temporary, name).replace(folder / name)
            for name in ("tokenizer.json", "tokenizer_config.json")
        ]
