"""Special tokens, unused slots, and the ids that they have in a new vocabulary."""

from tokenizers import AddedToken, Tokenizer, processors

from bert_pipeline.tokenizer.config import ORIGINAL_UNUSED, TokenizeConfig

SPECIALS = {
    "bert": {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"},
    "roberta": {"cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>"},
}
"""Special tokens by role, in the order of their ids."""


def reserve_entries(config: TokenizeConfig) -> list[str]:
    """The entries before those that are learnt, in the order of their ids.

    The original layout is that of `vocab.txt` in the BERT release: `[PAD]` 0, `[UNK]` 100, `[CLS]` 101, `[SEP]` 102,
    `[MASK]` 103, unused slots between and after.
    """
    specials = list(SPECIALS[config.specials].values())
    unused = [f"[unused{number}]" for number in range(config.unused_slots)]
    if config.id_layout == "original":
        return [specials[0], *unused[:ORIGINAL_UNUSED], *specials[1:], *unused[ORIGINAL_UNUSED:]]
    return specials + unused


def mark_specials(tokenizer: Tokenizer, specials: dict[str, str]) -> None:
    """Let the tokenizer know special tokens where it meets them in a text; they are in its vocabulary already."""
    # The mask swallows the space before it, as a word piece with its space would.
    mask = AddedToken(specials["mask"], lstrip=True, normalized=False, special=True)
    tokenizer.add_special_tokens(
        [*(token for role, token in specials.items() if role != "mask"), mask]
    )


def surround_texts(tokenizer: Tokenizer, cls: str, sep: str) -> None:
    """Put `[CLS] A [SEP]` or `[CLS] A [SEP] B [SEP]` around what is encoded, with segments 0 and 1.

    That is how examples are laid out, so it is what a model has seen, whatever its special tokens are called: RoBERTa's
    own `<s> A </s></s> B </s>`, all of it segment 0, would be strange to it.
    """
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls}:0 $A:0 {sep}:0",
        pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (cls, sep)],
    )
