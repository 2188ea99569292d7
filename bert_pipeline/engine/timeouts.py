"""Time limits and intervals of the engine, in seconds."""

TERMINATE_S = 3
"""A worker must end within this time after SIGTERM; then it is killed."""
RAY_CONNECT_S = 60
"""A Ray cluster must respond within this time."""
RESULTS_POLL_S = 0.5
"""Between two looks for results of tasks on a cluster."""
SQUEUE_POLL_S = 15.0
"""Between two calls of `squeue`."""
SQUEUE_FAILURE_S = 600.0
"""The run fails when `squeue` has failed for this long."""
SHARED_FILES_S = 60.0
"""Files written on another node may be visible this much later.

This is the usual limit of the attribute caches of shared file systems.
"""
