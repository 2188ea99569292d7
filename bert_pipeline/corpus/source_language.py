"""The language of each source: given with `--language`, or guessed from its first documents."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from bert_pipeline.corpus.config import CorpusConfig
from bert_pipeline.corpus.documents import Task
from bert_pipeline.corpus.languages import (
    GUESS,
    GUESS_EACH,
    guess_language,
    is_possible,
    sample_text,
)
from bert_pipeline.errors import BertpipeError, SourceUnreachable, Stopped
from bert_pipeline.progress import err
from bert_pipeline.storage.atomic import read_record, write_checked_json

_SAMPLE_DOCUMENTS = 200
_SAMPLE_CHARS = 20_000


@dataclass(frozen=True, slots=True)
class SourceLanguage:
    """The language of the documents of a source that does not tell it itself."""

    code: str
    """Empty when the source tells it; `guess-each` when each document has its own."""
    is_guessed: bool = False

    def describe(self) -> dict[str, Any]:
        """What the manifest records beside the settings."""
        return {"guessed_language": self.code} if self.is_guessed else {}


def find_languages(
    path: Path, tasks: Mapping[str, Sequence[Task]], config: CorpusConfig
) -> dict[str, SourceLanguage]:
    """The languages of the sources, which are recorded at `path` for a run that resumes."""
    if recorded := read_record(path):
        return {spec: SourceLanguage(*recorded[spec]) for spec in tasks}
    languages = {spec: _find_language(spec, found, config) for spec, found in tasks.items()}
    write_checked_json(path, {spec: astuple(language) for spec, language in languages.items()})
    return languages


def _find_language(spec: str, tasks: Sequence[Task], config: CorpusConfig) -> SourceLanguage:
    """The language of a source, whose first documents are read for it.

    Warns when the given language is not that of the text.
    """
    given = _given_language(spec, config)
    if given == GUESS_EACH or (given == GUESS and config.language_field):
        return SourceLanguage(GUESS_EACH)
    if given != GUESS and config.quiet:
        return SourceLanguage(given)  # nothing to warn about
    if (text := _read_start(tasks)) is None:
        return SourceLanguage("")
    if given == GUESS:
        return SourceLanguage(guess_language(text), is_guessed=True)
    if not is_possible(text, given):
        err.print(
            f"--source {spec}: --language {given} is given, but the text looks like "
            f"{guess_language(text)}. Sentences are split by the rules of {given}.",
            markup=False,
        )
    return SourceLanguage(given)


def _given_language(spec: str, config: CorpusConfig) -> str:
    if len(config.language) == 1:
        return config.language[0]
    return dict(zip(config.source, config.language, strict=True))[spec]


def _read_start(tasks: Sequence[Task]) -> str | None:
    """Samples of the first documents; None when the source tells their language."""
    counts: Counter[str] = Counter()
    documents = chain.from_iterable(task.documents(counts) for task in tasks)
    samples: list[str] = []
    size = 0
    try:
        for document in islice(documents, _SAMPLE_DOCUMENTS):
            if document.language:
                return None
            samples.append(sample_text(document.text))
            size += len(samples[-1])
            if size >= _SAMPLE_CHARS:
                break
    except (SourceUnreachable, Stopped):
        raise
    except BertpipeError:
        pass  # the complete reading reports broken data, after it has kept what is before
    return "\n".join(samples)
