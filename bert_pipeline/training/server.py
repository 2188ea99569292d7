"""Loaded only by the fork server of training processes: importing it has a side effect."""

import signal

# A signal to a whole process group reaches the fork server too: without it, nobody would learn how
# its processes ended.
signal.signal(signal.SIGTERM, signal.SIG_IGN)
