"""x"""

SECTIONS = frozenset({"corpus", "tokenize", "examples", "pretrain", "evaluate"})
