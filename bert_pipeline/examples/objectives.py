"""The registry of pretraining objectives.

To add one: write a module with its planning function and its `Objective` record, and list it here.
"""

from bert_pipeline.examples.full_sentences import MASKED_LM
from bert_pipeline.examples.next_sentence import NEXT_SENTENCE
from bert_pipeline.examples.objective import Objective
from bert_pipeline.examples.sentence_order import SENTENCE_ORDER

OBJECTIVES: dict[str, Objective] = {
    objective.name: objective for objective in (NEXT_SENTENCE, SENTENCE_ORDER, MASKED_LM)
}
"""Objectives by name, the value of `--objective`."""
