"""The Hugging Face hub: whether it can be reached at all."""

from __future__ import annotations

SECONDS_TO_ANSWER = 5.0


def hub_answers() -> bool:
    """Whether the hub answers soon. Its client by itself would try again for minutes, and so would `datasets`."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=SECONDS_TO_ANSWER)
    except Exception:  # of the HTTP library, which changes, or that offline mode is on
        return False
    return True
