"""Examples: documents become sentence pairs with masks in parquet."""
