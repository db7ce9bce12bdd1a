"""Compare the bytes of all golden cases, GPTQ too, between the working tree and another commit, on this machine.

python tests/golden/compare.py 8001280
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def hashes_of(tree: Path, kind: str) -> dict[str, dict[str, str]]:
    """What hash.py prints with the llmquant of a tree."""
    command = [sys.executable, str(REPOSITORY / "tests/golden/hash.py"), kind]
    # One thread, and no kernels: both trees compute in the same order, and neither needs its own library built.
    fixed = {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "LLMQUANT_CPU_KERNELS": "reference"}
    done = subprocess.run(command, env=os.environ | fixed, check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout)


def main() -> int:
    """Command line; the exit status is 1 if anything differs."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("commit", help="to compare with")
    commit, different = parser.parse_args().commit, 0
    with tempfile.TemporaryDirectory() as work:
        other = Path(work) / "tree"
        subprocess.run(["git", "worktree", "add", "--detach", other, commit], cwd=REPOSITORY, check=True)
        try:
            for kind in ("rtn", "gptq"):
                before, now = hashes_of(other, kind), hashes_of(REPOSITORY, kind)
                for name in before | now:
                    same = before.get(name) == now.get(name)
                    different += not same
                    print(f"{'same' if same else 'DIFFERENT'}: {name}")
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", other], cwd=REPOSITORY, check=True)
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(main())
