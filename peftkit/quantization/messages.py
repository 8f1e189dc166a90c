"""What bitsandbytes writes to the log that is no news to the user."""

from __future__ import annotations

import logging

_NO_NEWS = {
    # at import, where an optional kernel of its own is absent that is not used for training
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward",
    # once per process: int8 multiplies in float16, which the documentation of `int8` says
    "bitsandbytes.autograd._functions": "MatMul8bitLt: inputs will be cast",
}


def _is_news(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(_NO_NEWS[record.name])


def hide_no_news() -> None:
    """Drop these messages, and no others, from now on; works before bitsandbytes is imported."""
    for name in _NO_NEWS:
        logging.getLogger(name).addFilter(_is_news)
