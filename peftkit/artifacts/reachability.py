"""Does the hub answer? Asked once per process and endpoint, for at most three seconds."""

from __future__ import annotations

import os
import threading

ANSWER_SECONDS = 2.5
"""Below the promised three seconds, to leave room for starting the thread and the HTTP client."""

_problems: dict[str, str | None] = {}
_asking = threading.Lock()


def hub_reachable() -> bool:
    """Whether the hub answers. The first call takes up to three seconds, later calls none."""
    return hub_problem() is None


def hub_endpoint() -> str:
    """Address of the hub or of the company's stand-in for it, without a slash at the end."""
    if chosen := os.environ.get("HF_ENDPOINT"):
        return chosen.rstrip("/")
    from huggingface_hub import constants

    return constants.ENDPOINT


def hub_problem() -> str | None:
    """Why the hub cannot be used now, or None if it can."""
    if _told_to_stay_offline():
        return "offline mode is on (HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE); unset it to go online"
    endpoint = hub_endpoint()
    with _asking:
        if endpoint not in _problems:
            _problems[endpoint] = _ask(endpoint)
    return _problems[endpoint]


def _told_to_stay_offline() -> bool:
    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        if os.environ.get(variable, "").upper() in {"1", "ON", "YES", "TRUE"}:
            return True
    from huggingface_hub import constants

    return bool(constants.is_offline_mode())


def _ask(endpoint: str) -> str | None:
    """One request in a thread of its own: name look-ups and proxies can hang for longer than any HTTP timeout."""
    answers: list[str | None] = []
    thread = threading.Thread(target=lambda: answers.append(_request(endpoint)), name="peftkit-hub-probe", daemon=True)
    thread.start()
    thread.join(ANSWER_SECONDS)
    return answers[0] if answers else f"no answer from {endpoint} within 3 seconds"


def _request(endpoint: str) -> str | None:
    from huggingface_hub import get_session

    try:
        # The hub's own client: the proxies, certificates and client factory that the downloads will use.
        answer = get_session().head(endpoint, timeout=ANSWER_SECONDS, follow_redirects=False)
    # The client may be the user's own (set_client_factory) and run late, beside the interpreter's shutdown: whatever
    # it raises means "not reachable", and nothing may escape from this thread.
    except Exception as problem:
        return f"{endpoint} cannot be reached ({type(problem).__name__}: {problem})"
    if answer.status_code >= 500 or answer.status_code == 407:
        return f"{endpoint} answered with HTTP {answer.status_code}"
    return None
