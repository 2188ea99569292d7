"""Loaded by the server that training processes are started from, and by nothing else: importing it has an effect."""

import signal

import bert_pipeline.training.pretrain  # noqa: F401 (loaded once for all of them)

# Who stops a whole group of processes stops the server too: without it, nobody would learn how its processes ended.
signal.signal(signal.SIGTERM, signal.SIG_IGN)
