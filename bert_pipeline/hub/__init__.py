"""Hub: HTTP with retries, and downloads."""
