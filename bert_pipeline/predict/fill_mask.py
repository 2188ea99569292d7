"""`bertpipe fill-mask`: predict the word behind each mask."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoModelForMaskedLM, FillMaskPipeline

from bert_pipeline.errors import BertpipeError, UsageError
from bert_pipeline.model.architectures import count_positions
from bert_pipeline.predict.load import MASK, find_model, load_auto_tokenizer, load_model
from bert_pipeline.predict.word_continuation import WordContinuation


class ExamplesPipeline(FillMaskPipeline):  # type: ignore[misc]
    """Fills masks in texts that are encoded as in the examples, also after a mask within a word."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__(model=model, tokenizer=tokenizer)
        self._continuation = WordContinuation.for_tokenizer(
            tokenizer.backend_tokenizer, tokenizer.mask_token_id
        )

    def preprocess(self, inputs: str, **parameters: Any) -> Any:
        """The model's inputs, tensors of shape (1, tokens)."""
        encoded = super().preprocess(inputs, **parameters)
        if self._continuation is not None:
            length = parameters["tokenizer_kwargs"]["max_length"]
            ids = self._continuation.correct(inputs, encoded.encodings[0])
            ids = ids if len(ids) <= length else [*ids[: length - 1], ids[-1]]
            for name, values in encoded.items():  # segment ids and attention mask are constant
                encoded[name] = values.new_full((1, len(ids)), values[0, 0])
            encoded["input_ids"] = encoded["input_ids"].new_tensor([ids])
        return encoded

    def postprocess(self, model_outputs: Any, **parameters: Any) -> Any:
        """The candidates. Raises `BertpipeError` when the scores are not numbers."""
        if model_outputs["logits"].isnan().any():
            raise BertpipeError("The model predicts NaN. Check its config.json.")
        return super().postprocess(model_outputs, **parameters)


class MaskFiller:
    """A model folder ready to fill masks; `[MASK]` is replaced by the model's own mask token."""

    def __init__(self, model: str | Path) -> None:
        folder = find_model(Path(model))
        self._tokenizer = load_auto_tokenizer(folder)
        if self._tokenizer.mask_token is None:
            raise BertpipeError(
                f"{folder}: the tokenizer has no mask token. Use a masked language model."
            )
        network = load_model(folder, AutoModelForMaskedLM)
        self._length = count_positions(network.config)
        self._vocab_size = network.config.vocab_size
        if (last := max(self._tokenizer.get_vocab().values())) >= self._vocab_size:
            raise BertpipeError(
                f"{folder}: its tokenizer has ids up to {last}, the model only below "
                f"{self._vocab_size}. Use the tokenizer of the model."
            )
        self._pipeline = ExamplesPipeline(model=network, tokenizer=self._tokenizer)

    def fill(self, texts: Sequence[str], top_k: int) -> Any:
        """Predict the `top_k` tokens for each mask, as `transformers.pipeline("fill-mask")` does.

        After a mask within a word, a WordPiece model gets the entries with `##` that it saw there
        in training, where the pipeline gives it the start of another word.

        Returns, for a text with one mask, a list of `score`, `token`, `token_str` and `sequence`;
        for a text with several masks, a list of such lists; for several texts, a list of either.
        A text longer than the model's maximum length is truncated. Raises `BertpipeError` for a
        text without a mask (within the maximum length).
        """
        if not 1 <= top_k <= self._vocab_size:
            raise UsageError(
                f"--top-k {top_k}: must be between 1 and the vocabulary size, {self._vocab_size}."
            )
        if not texts:
            return []
        marked = [text.replace(MASK, self._tokenizer.mask_token) for text in texts]
        for number, text in enumerate(marked, start=1):
            self._check(number, text)
        kwargs = {"truncation": True, "max_length": self._length}
        return self._pipeline(
            marked[0] if len(marked) == 1 else marked, top_k=top_k, tokenizer_kwargs=kwargs
        )

    def fill_each(self, texts: Sequence[str], top_k: int) -> list[list[list[dict[str, Any]]]]:
        """For each text a list of masks, and for each mask a list of candidates (see `fill`)."""
        for number, text in enumerate(texts, start=1):
            self._check(number, text.replace(MASK, self._tokenizer.mask_token))
        results = (self.fill([text], top_k) for text in texts)
        return [result if isinstance(result[0], list) else [result] for result in results]

    def _check(self, number: int, text: str) -> None:
        mask_id = self._tokenizer.mask_token_id
        ids = self._tokenizer(text, truncation=True, max_length=self._length)["input_ids"]
        if mask_id in ids:
            return
        if self._tokenizer.mask_token in text:
            raise BertpipeError(
                f"Text {number}: {MASK} is beyond the maximum length of {self._length} tokens."
            )
        raise BertpipeError(
            f"Text {number} has no {MASK}: {text[:60]!r}. Write {MASK} for the word to predict."
        )


def format_candidates(masks: Sequence[Sequence[dict[str, Any]]]) -> list[str]:
    """The candidates as lines of a table: probability, a bar, the word."""
    lines = []
    for number, candidates in enumerate(masks, start=1):
        if len(masks) > 1:
            lines.append(f"  mask {number}")
        for candidate in candidates:
            probability = candidate["score"]
            word = candidate["token_str"].strip()
            if not word.isprintable() or not word:
                word = repr(candidate["token_str"])  # a space, or a zero-width non-joiner
            lines.append(f"  {probability:6.1%} {'█' * round(20 * probability):<20} {word}")
    return lines
