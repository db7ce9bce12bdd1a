"""What this machine has, how fast its memory is, what decode speed follows from that, and what could be better.

`diagnose` collects the facts, `advice` draws conclusions from them.
"""

from __future__ import annotations

from llmquant.doctor.diagnosis import Diagnosis, diagnose

__all__ = ["Diagnosis", "diagnose"]
