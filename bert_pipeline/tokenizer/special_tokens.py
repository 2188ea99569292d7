"""Special tokens and unused slots: their names, and their ids in a new vocabulary."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from bert_pipeline.tokenizer.config import TokenizeConfig

SPECIALS = {
    "bert": {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"},
    "roberta": {"cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>"},
}
"""Special tokens by role, in the order of their ids, for each value of `--specials`."""
ORIGINAL_UNUSED = 99
"""Unused slots between `[PAD]` and `[UNK]` in the vocabularies of the BERT release."""


def reserved_entries(config: TokenizeConfig) -> list[str]:
    """The special tokens and unused slots, in the order of their ids.

    With `id_layout` "original" the ids are those of `vocab.txt` in the BERT release: `[PAD]` 0,
    `[UNK]` 100, `[CLS]` 101, `[SEP]` 102, `[MASK]` 103, and unused slots between and after them
    (https://huggingface.co/google-bert/bert-base-uncased/blob/main/vocab.txt).
    """
    specials = list(SPECIALS[config.specials].values())
    unused = [f"[unused{number}]" for number in range(config.unused_slots)]
    if config.id_layout == "original":
        return [specials[0], *unused[:ORIGINAL_UNUSED], *specials[1:], *unused[ORIGINAL_UNUSED:]]
    return specials + unused


def register_special_tokens(tokenizer: Tokenizer, specials: dict[str, str]) -> None:
    """Register special tokens, so that they are recognized in a text; they have ids already."""
    from tokenizers import AddedToken

    # The mask takes the space before it (`lstrip`), as a token that begins with a space would.
    mask = AddedToken(specials["mask"], lstrip=True, normalized=False, special=True)
    others = [token for role, token in specials.items() if role != "mask"]
    tokenizer.add_special_tokens([*others, mask])


def set_post_processor(tokenizer: Tokenizer, cls: str, sep: str) -> None:
    """Encode texts as `[CLS] A [SEP]` or `[CLS] A [SEP] B [SEP]`, with segment ids 0 and 1.

    This is the layout of the examples, for every set of special tokens. RoBERTa's own layout,
    `<s> A </s></s> B </s>` with segment ids 0, would differ from what the model was trained on.
    """
    from tokenizers import processors

    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls}:0 $A:0 {sep}:0",
        pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (cls, sep)],
    )
