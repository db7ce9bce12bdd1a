"""Kill a run with SIGKILL at random moments until it finishes, and compare with an uninterrupted one, byte by byte.

    python tests/engine/kill_resume.py MODEL RECIPE --kills 20

The delays are drawn between zero and the working time of an uninterrupted run, counted from the moment its folder
appears (importing libraries takes longer than small models do). So the kills fall into every phase: calibration,
rounding, writing, verification, the final rename. Each round starts from nothing, is killed once, resumed, and
compared. tests/engine/test_run.py runs a short version.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROVENANCE = "llmquant.json"  # holds times, which differ from run to run


def digest(folder: Path) -> dict[str, str]:
    """Hash of every file of a result that must not depend on when the run was interrupted."""
    files = sorted(path for path in folder.iterdir() if path.name != PROVENANCE)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def command(model: Path, recipe: Path, out: Path, *options: str) -> list[str]:
    """The command line of one run."""
    return [sys.executable, "-m", "llmquant", "quantize", str(model), "-r", str(recipe), "-o", str(out), *options]


def begin(arguments: list[str], out: Path) -> subprocess.Popen[bytes]:
    """Start a run and wait until its working folder appears."""
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not out.with_name(f"{out.name}.partial").exists() and process.poll() is None:
        time.sleep(0.005)
    return process


def run_killed(arguments: list[str], out: Path, delay: float) -> bool:
    """Kill a run `delay` seconds after it began to work; whether it was still running then."""
    process = begin(arguments, out)
    try:
        process.wait(delay)
        return False
    except subprocess.TimeoutExpired:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        return True


def check(model: Path, recipe: Path, work: Path, kills: int, seed: int) -> list[str]:
    """Do `kills` rounds.

    Returns:
        one line for each round.

    Raises:
        AssertionError: if a resumed run differs from the uninterrupted one.
    """
    process = begin(command(model, recipe, work / "whole"), work / "whole")
    began = time.monotonic()
    assert process.wait() == 0
    duration = time.monotonic() - began
    wanted = digest(work / "whole")
    rng, lines = random.Random(seed), []
    for number in range(1, kills + 1):
        out, partial = work / f"round{number}", work / f"round{number}.partial"
        delay = rng.uniform(0.0, duration)
        killed = run_killed(command(model, recipe, out), out, delay)
        shards = len(list(partial.glob("model-*.safetensors"))) if partial.exists() else 0
        state = f"{shards} shards done" if partial.exists() else "finished" if out.exists() else "not begun"
        done = subprocess.run(command(model, recipe, out, "--resume"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert done.returncode == 0, done.stdout.decode()
        assert digest(out) == wanted, f"round {number}: the resumed result differs"
        leftovers = [path.name for path in work.iterdir() if path.name.startswith(f"round{number}.")]
        assert not leftovers, leftovers
        shutil.rmtree(out)
        lines.append(f"{number:3} killed={killed} after {delay:5.2f} s of {duration:.2f} s, {state}: identical")
    return lines


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="kill -9 a run at random moments, resume, compare")
    parser.add_argument("model", type=Path)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        print("\n".join(check(args.model, args.recipe, Path(work), args.kills, args.seed)))


if __name__ == "__main__":
    main()
