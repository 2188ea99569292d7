"""Errors for users: `cli.main` prints each as one message and exits with its code."""


class BertpipeError(Exception):
    """An error whose message says what failed, where, and what to do."""

    exit_code = 1


class UsageError(BertpipeError):
    """A command, recipe or option is invalid."""

    exit_code = 2


class Stopped(BertpipeError):
    """A signal stopped the run, after its state was saved."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


class ReportedByMain(BertpipeError):
    """An error that the main process of the run reports."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("The main process failed; see its error message.")
        self.exit_code = exit_code


class LostRank(BertpipeError):
    """Another process of the run ended or cannot be reached."""


class SourceUnreachable(BertpipeError):
    """A source does not respond at the moment."""


def describe_os_error(error: OSError) -> str:
    """The file and the reason, in one line."""
    return f"{error.filename or 'A file'}: {error.strerror or error}."
