"""Saving a tokenizer for `AutoTokenizer.from_pretrained`, so that texts look to a model as its examples did."""

from pathlib import Path
from tempfile import TemporaryDirectory

from tokenizers import Tokenizer

from bert_pipeline.tokenizer.load import LoadedTokenizer, special_tokens
from bert_pipeline.tokenizer.special_tokens import surround_texts


def lay_out_as_examples(loaded: LoadedTokenizer) -> tuple[Tokenizer, dict[str, str]]:
    """The tokenizer, which from now on surrounds texts as examples do, and cuts or pads none; its special tokens."""
    tokenizer, specials = loaded.tokenizer, special_tokens(loaded)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = False
    surround_texts(tokenizer, specials["cls"], specials["sep"])
    return tokenizer, specials


def save_pretrained(
    tokenizer: Tokenizer, specials: dict[str, str], folder: Path, max_length: int | None = None
) -> list[Path]:
    """Save with the input names that BERT's segments need, and the longest text in tokens; returns the files."""
    from transformers import PreTrainedTokenizerFast

    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **{f"{role}_token": token for role, token in specials.items()},
        **({} if max_length is None else {"model_max_length": max_length}),
    )
    with TemporaryDirectory(
        dir=folder, prefix=".", suffix=".tmp"
    ) as place:  # no half of a file under its name
        wrapped.save_pretrained(place)
        return [
            Path(place, name).replace(folder / name)
            for name in ("tokenizer.json", "tokenizer_config.json")
        ]
