"""Saving a tokenizer for `AutoTokenizer.from_pretrained`, with the layout of the examples."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

from tokenizers import Tokenizer

from bert_pipeline.tokenizer.load import LoadedTokenizer, special_tokens
from bert_pipeline.tokenizer.prefix_space import set_prefix_space
from bert_pipeline.tokenizer.special_tokens import set_post_processor

SAVED_FILES = frozenset(
    {"tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "merges.txt"}
)


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
    tokenizer: Tokenizer,
    specials: dict[str, str],
    folder: Path,
    max_length: int | None = None,
    *,
    has_segments: bool = True,
) -> list[Path]:
    """Write the tokenizer in the formats that other tools read; returns the files.

    `tokenizer.json` and `tokenizer_config.json` are for transformers, `vocab.txt` or `vocab.json`
    and `merges.txt` for tools that know the vocabulary alone. `max_length` becomes
    `model_max_length`; a model without segments gets no `token_type_ids`.
    """
    from transformers import PreTrainedTokenizerFast

    segment_names = ["token_type_ids"] if has_segments else []
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=["input_ids", *segment_names, "attention_mask"],
        **{f"{role}_token": token for role, token in specials.items()},
        **({} if max_length is None else {"model_max_length": max_length}),
    )
    # Written to a temporary folder, so that no incomplete file has its final name.
    with TemporaryDirectory(dir=folder, prefix=".", suffix=".tmp") as temporary:
        wrapped.save_pretrained(temporary)
        _complete_config(Path(temporary, "tokenizer_config.json"), tokenizer, specials)
        tokenizer.model.save(temporary)
        names = sorted(path.name for path in Path(temporary).iterdir())
        return [
            Path(temporary, name).replace(folder / name) for name in names if name in SAVED_FILES
        ]


def _complete_config(path: Path, tokenizer: Tokenizer, specials: dict[str, str]) -> None:
    """Add what older releases and the classes of single models need to read the same tokenizer."""
    config = json.loads(path.read_text(encoding="utf-8"))
    # transformers 5 writes the name of a class that transformers 4 does not have.
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if json.loads(tokenizer.to_str())["model"]["type"] == "BPE":
        # `RobertaTokenizer` makes a tokenizer of its own from these.
        _, adds_space = set_prefix_space(tokenizer, "never")
        roles = {"bos_token": specials["cls"], "eos_token": specials["sep"]}
        config |= roles | {"add_prefix_space": adds_space}
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
