"""Storage: manifests, workspaces, atomic files and parquet shards."""
