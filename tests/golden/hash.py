"""Print the hashes of the golden cases as JSON; PYTHONPATH says of which llmquant.

python tests/golden/hash.py rtn > tests/golden/rtn.json
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))  # behind PYTHONPATH: the cases are ours, llmquant may not be

from tests.golden.cases import GPTQ, RTN, hashes


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("kind", choices=("rtn", "gptq"))
    found = {}
    for case in {"rtn": RTN, "gptq": GPTQ}[parser.parse_args().kind]:
        with tempfile.TemporaryDirectory() as work, contextlib.redirect_stdout(sys.stderr):
            found[case.name] = dict(hashes(case, Path(work)))
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
