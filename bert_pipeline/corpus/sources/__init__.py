"""Sources: where documents come from, one module per kind."""
