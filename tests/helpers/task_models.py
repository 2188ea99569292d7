"""Small model folders with a tokenizer, and labelled files to fine-tune them on."""

import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForPreTraining, PreTrainedTokenizerFast

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
GOOD = ["bright", "warm", "clear", "kind"]
BAD = ["dark", "cold", "dull", "cruel"]
OTHERS = ["the", "room", "was", "and", "a", "day", "felt", "very", "voice", "not", "paris", "rome"]
WORDS = [*GOOD, *BAD, *OTHERS]
SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}


def wordpiece() -> Tokenizer:
    """Words, letters, and letters within words."""
    letters = "abcdefghijklmnopqrstuvwxyz.,?"
    entries = [*SPECIALS, *WORDS, *letters, *(f"##{letter}" for letter in letters)]
    vocabulary = {entry: number for number, entry in enumerate(entries)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return _finish(tokenizer)


def byte_level(*, add_prefix_space: bool, trim_offsets: bool = True) -> Tokenizer:
    """Bytes, and two merges that begin with a space."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "t"), ("Ġt", "h"), ("e", "r")]
    entries = [*SPECIALS, *alphabet, *("".join(merge) for merge in merges)]
    vocabulary = {entry: number for number, entry in enumerate(entries)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer = _finish(tokenizer)
    byte_level = processors.ByteLevel(trim_offsets=trim_offsets)
    assert tokenizer.post_processor is not None
    tokenizer.post_processor = processors.Sequence([byte_level, tokenizer.post_processor])
    return tokenizer


def _finish(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.add_special_tokens(SPECIALS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return tokenizer


def wrap(tokenizer: Tokenizer) -> Any:
    """The tokenizer as transformers knows it."""
    roles = ("pad", "unk", "cls", "sep", "mask")
    names = {f"{role}_token": token for role, token in zip(roles, SPECIALS, strict=True)}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **names,
    )


def make_model(folder: Path, **fields: Any) -> Path:
    """A pretrained model: random weights, which all tests share."""
    tokenizer = wrap(wordpiece())
    torch.manual_seed(0)
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = BertConfig(vocab_size=len(tokenizer), **SHAPE | dropout | fields)
    BertForPreTraining(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def sentences(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Sentences with a good or a bad word, and which it is."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        label, words = draw.choice([("good", GOOD), ("bad", BAD)])
        text = [
            "the",
            draw.choice(["room", "day", "voice"]),
            "was",
            *(["very"] * draw.randrange(4)),
        ]
        rows.append((" ".join([*text, draw.choice(words)]), label))
    return rows


def write_sentences(file: Path, count: int = 200, seed: int = 0) -> Path:
    """The sentences as a TSV file."""
    lines = ["sentence\tlabel", *(f"{text}\t{label}" for text, label in sentences(count, seed))]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file
