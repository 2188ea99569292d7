"""The documentation of the installed Python packages as a source."""
