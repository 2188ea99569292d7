"""Model: BERT's forward pass over flat tokens, and its named sizes."""
