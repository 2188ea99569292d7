"""The user's token and the endpoint's password: checked before they are sent, never printed."""

import re

import huggingface_hub
from huggingface_hub import constants

from bert_pipeline.errors import UsageError

_PASSWORD = re.compile(r"(\w://[^\s/:@]*):[^\s/]*@")


def hide_password(text: str) -> str:
    """A text with `***` for the password of each URL, which `HF_ENDPOINT` may have."""
    return _PASSWORD.sub(r"\1:***@", text)


def shown_endpoint() -> str:
    """The URL of the Hub, for messages."""
    return hide_password(constants.ENDPOINT)


def check_token() -> None:
    """Raise `UsageError` for a token that cannot be sent in a header."""
    token = huggingface_hub.get_token() or ""
    if not (token.isascii() and token.isprintable()):
        raise UsageError(
            "HF_TOKEN (or the token that `hf auth login` saved) has characters that no token has, "
            f"such as letters with accents or line breaks. Copy it again from "
            f"{shown_endpoint()}/settings/tokens."
        )
