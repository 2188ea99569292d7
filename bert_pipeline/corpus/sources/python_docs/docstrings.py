"""Extracts the prose of a docstring.

Docstrings mix English with doctests, literal blocks, tables, signatures and the markup of
reStructuredText, Markdown and the NumPy, Google and Sphinx styles of parameter lists.
`extract_paragraphs` keeps the English, in three steps:

1. blocks that are not prose (fenced and literal blocks, doctests, tables, most directives) become
   blank lines (`blocks.py`);
2. the remaining hard-wrapped lines are joined into paragraphs, by blank lines, bullets and
   indentation, and lines or prefixes that only declare a parameter are removed (`paragraphs.py`);
3. inline markup is replaced with the words that it marks (`inline_markup.py`), and paragraphs that
   do not read as a sentence are removed (`prose.py`).

The rules are heuristics. They prefer losing a paragraph to keeping a page of code.
"""

from bert_pipeline.corpus.sources.python_docs.blocks import dedent, remove_blocks
from bert_pipeline.corpus.sources.python_docs.inline_markup import clean_inline
from bert_pipeline.corpus.sources.python_docs.paragraphs import join_lines
from bert_pipeline.corpus.sources.python_docs.prose import reads_as_prose

_MAX_PARAGRAPH_CHARS = 10_000
"""A longer paragraph is data, for which the regular expressions would take long."""


def extract_paragraphs(docstring: str) -> list[str]:
    """The paragraphs of English prose in `docstring`, in order, each on one line."""
    paragraphs = join_lines(list(remove_blocks(dedent(docstring))))
    readable = [clean_inline(text) for text in paragraphs if len(text) <= _MAX_PARAGRAPH_CHARS]
    return [paragraph for paragraph in readable if reads_as_prose(paragraph)]
