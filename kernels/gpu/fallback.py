"""What did not take the fast path, counted by reason, and said in the log the first time.

Fallbacks are silent neither in results nor in numbers: reports show `fallbacks()`, and tests look at it.
"""

from __future__ import annotations

import logging
from collections import Counter
from threading import Lock

_log = logging.getLogger(__name__)
_counts: Counter[str] = Counter()
_lock = Lock()


def note_fallback(reason: str) -> None:
    """Count a call that did not run as it should have.

    The reason, in words, has nothing that differs from call to call: it is what is counted.
    """
    with _lock:
        _counts[reason] += 1
        first = _counts[reason] == 1
    if first:
        _log.warning("GPU kernels: %s (said once, counted in llmquant.kernels.gpu.fallback.fallbacks())", reason)


def fallbacks() -> dict[str, int]:
    """How often each reason was noted in this process, the most frequent first."""
    with _lock:
        return dict(_counts.most_common())


def forget_fallbacks() -> None:
    """Start to count, and to log, anew."""
    with _lock:
        _counts.clear()
