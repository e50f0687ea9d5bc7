"""Kernels compiled by other processes while this one goes on, so that the first run on a machine waits less.

Two processes compile twice as fast as one, where threads would not: numba is Python code under a lock. They meet in the cache on disk. Nothing depends on them:
a kernel that no process has begun is compiled where it is needed, and so is one that does not turn up in the cache after all.
"""

from __future__ import annotations

import gc
import json
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext, suppress
from importlib import import_module
from threading import Event, Lock, Thread
from typing import IO, Any

_PARAMETERS = {
    "frequencies._normalise": "int64[::1], int64, int64, int64, boolean, int64[::1], int64[::1], uint16[::1], uint16[::1]",
    "class_rans._unpack": "int64[:, ::1], int64[::1], uint64[::1]",
    "few_lanes._unpack": "int64[:, ::1], int64[::1], uint64[::1], int64",
    "frame_encoder._code": "int64[:, ::1], int64, int64[:, ::1], uint64[::1], int64[:, ::1], uint16[:, ::1], int64, uint16[:, ::1], int64, int64, int64",
    "frame_encoder._plan": "int64[:, ::1], int64, int64[:, ::1], uint64[::1], int64[:, ::1], int64[::1], int64, int64[::1], int64[::1], uint16[:, ::1], "
    "uint16[:, ::1], int64",
    "planes.pack_planes": "uint16[::1], int64, uint8[::1]",
    "rans._unpack": "int64[:, ::1], int64[::1], uint64[::1]",
    "scale_classes._fit": "int64, int64, int64, int64, int64, int64, int64, int64, int32[::1], int32[::1], int64[::1], uint16[::1]",
    "scale_classes._merge": "int64[:, ::1], int64, int64, int64, int64, int64, int64, int64[::1], int64[::1], int64[::1], int64[::1]",
    "whole_frame._parse": "int64[:, ::1], int64, int64, int64, int64, int64, int64[:, ::1], int64[:, ::1], int64[:, ::1], uint64[::1]",
}
"""Types of kernels' parameters, as numba writes them; kernels that are not here take int64 only. A kernel's name is that of its module and its own."""

TO_DECODE = ("rans._unpack", "class_rans._unpack", "few_lanes._unpack", "whole_frame._parse", "frequencies._read_table")
"""What restoring needs and takes long to compile. Other processes begin with the first, which take longest; this process, where it waits, with the last."""
_LONGER_THAN_A_WAIT = frozenset(("frame_encoder._code", "rans._unpack", "rans._pack", "class_rans._unpack", "class_rans._pack", "frequencies._normalise"))
"""What is not begun while waiting for another kernel: it takes longer, and many files do not need it."""
_TO_ENCODE = (
    "frame_encoder._code", "few_lanes._unpack", "rans._unpack", "rans._pack", "frequencies._normalise", "whole_frame._parse", "frequencies._histogram",
    "frequencies._read_table", "frame_encoder._plan",
)  # fmt: skip
_TO_ENCODE_SMALL = ("class_rans._unpack", "class_rans._pack", "planes.pack_planes", "scale_classes._merge", "scale_classes._fit")
_SMALL = 9
_MOST_PROCESSES = 3
"""Each begins with half a second of imports."""
_PATIENCE = 60.0
"""Seconds for a process that may have been stopped."""
_OPTIONS = {"-I": "isolated", "-E": "ignore_environment", "-S": "no_site", "-s": "no_user_site"}
"""What keeps a process from code that it was not told to run, and is kept by those that it starts."""


def to_encode(level: int | None) -> tuple[str, ...]:
    """The same for compressing at a level, None for the default, which decodes what it has encoded."""
    return _TO_ENCODE if level != _SMALL else (*_TO_ENCODE[:2], *_TO_ENCODE_SMALL, *_TO_ENCODE[2:])


def _kernel(name: str) -> Any:
    module, function = name.split(".")
    return getattr(import_module(f"modelcodec.kernels.{module}"), function)


def parameters(name: str) -> tuple[Any, ...]:
    """Types that a kernel is called with."""
    from numba.core import sigutils, types

    if name in _PARAMETERS:
        return tuple(sigutils.normalize_signature(f"({_PARAMETERS[name]})")[0])
    n: int = _kernel(name).py_func.__code__.co_argcount
    return (types.int64,) * n


def compiled_ahead(names: Iterable[str], processors: int) -> AbstractContextManager[object]:
    """Have those of these kernels that the cache lacks compiled by other processes, one for each processor but this process's own, while the context lasts."""
    from modelcodec.kernels import jit

    if processors < 2 or not sys.executable or getattr(sys, "frozen", False) or jit.folder() is None:  # frozen: the program is no Python interpreter
        return nullcontext()
    missing = deque(name for name in names if not jit.is_kept(_kernel(name)))
    return _Ahead(missing, min(processors - 1, _MOST_PROCESSES, len(missing))) if missing else nullcontext()


class _Ahead:
    """Kernels that wait for a process, and those that one has begun."""

    def __init__(self, names: deque[str], n_processes: int) -> None:
        self._lock = Lock()
        self._waiting = names
        self._begun: dict[str, Event] = {}
        self._processes: list[subprocess.Popen[str]] = []
        self._n_processes = n_processes

    def __enter__(self) -> None:
        from modelcodec.kernels import jit

        # No module is looked for in the working folder, or where the environment says, unless this process does so too.
        code = "import json, sys; sys.path[:] = json.loads(input()); from modelcodec.kernels import ahead; ahead.serve()"
        command = [sys.executable, "-P", *(option for option, flag in _OPTIONS.items() if getattr(sys.flags, flag)), "-c", code]
        for _ in range(self._n_processes):
            try:
                process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
                self._processes.append(process)
                Thread(target=self._feed, args=(process,), daemon=True).start()
            except (OSError, RuntimeError):  # too many processes or threads, or no such program: then there is one less
                break
        jit.ELSEWHERE.append(self._elsewhere)

    def __exit__(self, *_: object) -> None:
        from modelcodec.kernels import jit

        jit.ELSEWHERE.remove(self._elsewhere)
        with self._lock:
            self._waiting.clear()
        for process in self._processes:
            process.kill()  # what it has not finished is not needed; the cache only ever takes whole files
            process.wait()

    def _feed(self, process: subprocess.Popen[str]) -> None:
        """Give one process after another of the kernels, as long as it answers."""
        name: str | None = None
        if process.stdin is None or process.stdout is None:
            raise AssertionError("they were asked for")
        with suppress(OSError), process.stdin as to, process.stdout as answers:
            _say(to, json.dumps([place for place in sys.path if isinstance(place, str)]))  # Python looks at no others
            while answers.readline():
                name = self._done_and_next(name)
                if name is None:
                    break
                _say(to, name)
        self._done_and_next(name, go_on=False)

    def _done_and_next(self, done: str | None, go_on: bool = True) -> str | None:
        with self._lock:
            if done is not None:
                self._begun[done].set()
            if not go_on or not self._waiting:
                return None
            name = self._waiting.popleft()
            self._begun[name] = Event()
            return name

    def _elsewhere(self, name: str) -> bool:
        """Whether another process has compiled a kernel: waits for one that has begun, and compiles others meanwhile."""
        while True:
            with self._lock:
                if name in self._waiting:
                    self._waiting.remove(name)
                begun = self._begun.get(name)
                may_take = begun is not None and not begun.is_set() and self._waiting and self._waiting[-1] not in _LONGER_THAN_A_WAIT
                other = self._waiting.pop() if may_take else None
            if begun is None:
                return False
            if other is None:
                begun.wait(_PATIENCE)
                return True
            with suppress(Exception):  # whoever needs it compiles it again, and sees what is wrong
                _kernel(other).compile(parameters(other))


def _say(to: IO[str], line: str) -> None:
    to.write(line + "\n")
    to.flush()


def serve() -> None:
    """Compile the kernels whose names come on standard input; a line to standard output says that one is done, the first that there may be one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is for the process that asks, and that one ends this one
    gc.disable()  # it would search the compiler's many objects again and again, and this process does not live long
    sys.modules.setdefault("scipy", None)  # type: ignore[arg-type]  # numba would import it for its linear algebra, of which kernels have none
    import modelcodec.kernels.jit  # noqa: F401

    answers, sys.stdout = sys.stdout, sys.stderr
    _say(answers, "ready")
    for line in sys.stdin:
        with suppress(Exception):  # as in `_elsewhere`
            name = line.strip()
            _kernel(name).compile(parameters(name))
        _say(answers, "done")
