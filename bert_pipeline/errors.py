"""Errors that a user can act on; `cli.main` prints each as one message and exits with its code."""


class BertpipeError(Exception):
    """Something failed that the message explains: what, where, and what to do."""

    exit_code = 1


class UsageError(BertpipeError):
    """The command, recipe or option is wrong, whatever lies on disk."""

    exit_code = 2


class Stopped(BertpipeError):
    """A signal ended the run after its work was saved."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


class ReportedByMain(BertpipeError):
    """Another process of the run has met the error and prints it."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("The main process failed; its message stands with it.")
        self.exit_code = exit_code


class LostRank(BertpipeError):
    """Another process of the run is gone, or out of reach."""


class SourceUnreachable(BertpipeError):
    """A source does not respond now, and may at another time."""


def describe_os_error(error: OSError) -> str:
    """What the system refused, in one line."""
    return f"{error.filename or 'A file'}: {error.strerror or error}."
