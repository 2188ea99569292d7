"""Loaded by the server that training processes are started from, and by nothing else: importing it has an effect."""

import signal

# Who stops a whole group of processes stops the server too: without it, nobody would learn how its processes ended.
signal.signal(signal.SIGTERM, signal.SIG_IGN)
