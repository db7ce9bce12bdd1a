"""Many fuzz cases, with a summary: what was refused, and what should not have happened.

python tests/fuzz/run.py --cases 5000 --seed 0
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.fuzz.cases import Bench, run_case


def main() -> int:
    """Command line; the exit status is 1 if any case went wrong."""
    parser = argparse.ArgumentParser(description="damage recipes and checkpoints, and look what happens")
    parser.add_argument("--cases", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0, help="of the first case; the others follow")
    args = parser.parse_args()
    counts: Counter[str] = Counter()
    began, slowest = time.monotonic(), 0.0
    with tempfile.TemporaryDirectory() as work:
        bench = Bench.make(Path(work))
        for seed in range(args.seed, args.seed + args.cases):
            start = time.process_time()
            outcome = run_case(bench, seed)
            slowest = max(slowest, time.process_time() - start)
            counts[outcome.kind] += 1
            if outcome.bad:
                print(f"{seed}: {outcome.kind}: {outcome.what}: {outcome.detail}", flush=True)
    print(f"{args.cases} cases in {time.monotonic() - began:.0f} s, the slowest took {slowest:.1f} s of CPU time")
    print(", ".join(f"{kind} {count}" for kind, count in counts.most_common()))
    return int(any(kind not in ("fine", "refused") for kind in counts))


if __name__ == "__main__":
    sys.exit(main())
