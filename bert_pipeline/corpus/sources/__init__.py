"""Sources of documents: one module per kind, listed in `registry.py`."""
