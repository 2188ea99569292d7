"""Engine: maps a pure function over shards, on this machine or on a cluster."""
