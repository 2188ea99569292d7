"""Loaded only by the fork server of training processes: importing it has a side effect."""

import signal

# A signal to a whole process group reaches the fork server too: without it, the launcher would not
# get the exit codes of its processes.
signal.signal(signal.SIGTERM, signal.SIG_IGN)
