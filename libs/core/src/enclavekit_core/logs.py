# SPDX-License-Identifier: Apache-2.0
"""Structured logs on stderr: for people on a terminal, JSON lines otherwise.

`log = get_logger("pipeline")`; `log.info("exec started", cid=16, argv0="sh")`. No secrets, no payloads.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import TextIO, cast

if "rich" in sys.modules:
    import structlog
else:
    # structlog loads it if it is installed, for tracebacks that ours are not: 5 MB and a tenth of a second
    sys.modules["rich"] = None  # type: ignore[assignment]  # import then says that there is no such module
    import structlog

    del sys.modules["rich"]

LEVELS = ("debug", "info", "warning", "error")
LEVEL_VARIABLE = "ENCLAVEKIT_LOG"


def configure(level: str | None = None, *, json_lines: bool | None = None) -> None:
    """Set up logging for the process.

    Args:
        level: one of LEVELS; default from ENCLAVEKIT_LOG, else "info".
        json_lines: None decides by whether stderr is a terminal.
    """
    chosen = (level or os.environ.get(LEVEL_VARIABLE, "info")).lower()
    if chosen not in LEVELS:
        chosen = "info"
    if json_lines is None:
        json_lines = not sys.stderr.isatty()
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer(sort_keys=False)
        if json_lines
        else structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *([structlog.processors.format_exc_info] if json_lines else []),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, chosen.upper())),
        logger_factory=structlog.PrintLoggerFactory(file=cast(TextIO, _Stderr())),
        cache_logger_on_first_use=True,
    )


class _Stderr:
    """What is `sys.stderr` when something is written: loggers are kept for longer than a stream that was put there."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


def get_logger(part: str) -> structlog.typing.FilteringBoundLogger:
    """Return the logger of one part."""
    return cast(structlog.typing.FilteringBoundLogger, structlog.get_logger(part=part))
