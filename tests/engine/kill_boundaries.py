"""Kill a process before each of its changes to the disk, one after the other, and look what is left each time.

Python tells an audit hook of every call that renames, removes, makes or opens for writing. So a child can end itself,
without any cleaning up, before its first change to a folder, its second, and so on until one child gets through: every
state that a kill can leave on the disk is seen (a file that is half written aside; test_output.py tears those).
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

_CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link", "os.symlink"}


def changes(event: str, arguments: tuple[object, ...]) -> bool:
    """Whether an audit event announces a change to the disk."""
    if event == "open":
        flags = arguments[2]
        return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))
    return event in _CHANGES


def run_until(number: int, work: Path, action: Callable[[], object]) -> bool:
    """Run `action` in a child that dies before its change number `number` to anything below `work`.

    Returns:
        whether it was killed; False if it got through.

    Raises:
        AssertionError: if the action failed by itself.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of threads, from Python 3.12 on; the action uses none of theirs
        child = os.fork()
    if child == 0:
        left = number

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal left
            if changes(event, arguments) and any(str(work) in str(argument) for argument in arguments[:2]):
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        try:
            action()
        except BaseException as error:  # noqa: BLE001 - the child must not come back into the test runner
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) in (0, -signal.SIGKILL), "the child failed by itself"
    return os.WIFSIGNALED(status)


def every_kill(make: Callable[[int], tuple[Path, Callable[[], object]]]) -> Iterator[tuple[int, Path, bool]]:
    """Kill at each boundary in turn.

    Args:
        make: gives the folder and the action of each round, from 1.

    Yields:
        the number of the round, its folder, and whether the child was killed; the last one got through.
    """
    number, killed = 0, True
    while killed:
        number += 1
        work, action = make(number)
        killed = run_until(number, work, action)
        yield number, work, killed
