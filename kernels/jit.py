"""`kernel`: numba's njit with the settings of this project and a cache on disk that notices every edit of any kernel.

numba's own cache looks at one source file only and would run old code after an edit of an imported one. Here compiled code lies in a folder whose name is a
hash of all kernel sources, of the versions of numba and llvmlite, and of the processor that is compiled for. The folder is the user's own and private, since
loading a compiled function unpickles it. Where no such folder can be had (read-only home), kernels work and are compiled anew in each process.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import platform
import shutil
import stat
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite
import numba
from numba import njit
from numba.core import config
from numba.core.caching import FunctionCache
from numba.core.compiler import Flags, compile_extra
from numba.core.runtime import rtsys
from numba.extending import intrinsic

from modelcodec.kernels import arms
from modelcodec.kernels.compiler import KernelCompiler

_FOLDERS_KEPT = 3


def _user_cache() -> Path:
    """The system's place for a user's cached files."""
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def _key() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    settings = (
        numba.__version__,
        llvmlite.__version__,
        sys.version_info[:2],
        platform.machine(),
        *arms.target(),
        config.OPT,
        config.BOUNDSCHECK,
        config.ENABLE_AVX,
    )
    digest.update(repr(settings).encode())
    return digest.hexdigest()[:24]


def _private(folder: Path) -> bool:
    """Whether nobody else may write there: what lies in the cache is unpickled."""
    if sys.platform == "win32":
        return True
    status = folder.lstat()
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o022


def _remove_old(home: Path, current: Path) -> None:
    """Keep the newest few of our folders (other environments may use them), remove the rest."""
    others = sorted((path for path in home.iterdir() if path.is_dir() and path != current), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in others[_FOLDERS_KEPT:]:
        shutil.rmtree(path, ignore_errors=True)


@cache
def folder() -> Path | None:
    """Where compiled kernels lie, made when missing; None where there can be no such folder."""
    try:
        home = _user_cache() / "modelcodec" / "kernels"
        current = home / _key()
        new = not current.is_dir()
        home.parent.parent.mkdir(parents=True, exist_ok=True)
        for path in (home.parent, home, current):
            path.mkdir(mode=0o700, exist_ok=True)
        if not _private(current) or not _private(home) or not os.access(current, os.W_OK):
            return None
        if new:
            _remove_old(home, current)
    except (OSError, RuntimeError):  # no permission, a full disk, no home at all
        return None
    return current


BEFORE_COMPILING: list[Callable[[], None]] = []
"""Called before a kernel is compiled because the cache does not have it: a program can tell its user why it takes its time."""

ELSEWHERE: list[Callable[[str], bool]] = []
"""Asked then, with "module.function", whether another process has compiled it meanwhile, so that the cache is worth another look. See `ahead`."""


def _made_of(function: Any) -> tuple[str, ...]:
    """A kernel's code and what it closes over, the same in each process: numba's own key pickles closures, and a kernel's pickle has a number drawn anew."""
    closed_over = [cell.cell_contents for cell in function.__closure__ or ()]
    return (function.__code__.co_code.hex(), *(str(_made_of(x.py_func)) if hasattr(x, "py_func") else repr(x) for x in closed_over))


class _Cache(FunctionCache):
    """numba's cache, except that a damaged or vanished file means compiling again and a full disk means not keeping."""

    def _index_key(self, sig: Any, codegen: Any) -> Any:
        return sig, codegen.magic_tuple(), _made_of(self._py_func)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        found = self._kept(sig, target_context)
        if found is None:
            for tell in BEFORE_COMPILING:
                tell()
            name = f"{self._py_func.__module__.rpartition('.')[2]}.{self._py_func.__qualname__}"
            if any(compiled(name) for compiled in ELSEWHERE):
                found = self._kept(sig, target_context)
        return found

    def _kept(self, sig: Any, target_context: Any) -> Any:
        try:
            # numba's own method first loads what only compiling needs, most of numba and scipy, which takes longer than all the rest here.
            rtsys.initialize(target_context)
            with self._guard_against_spurious_io_errors():
                return self._load_overload(sig, target_context)
        except Exception:  # whatever unpickling a damaged file raises
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except Exception:  # disk full, folder removed by a newer version, damaged index
            return

    def has_code(self) -> bool:
        """Whether there is any, for whatever types of parameters."""
        return os.path.exists(os.path.join(self.cache_path, f"{self._impl.filename_base}.nbi"))


def is_kept(kernel: Any) -> bool:
    """Whether the cache has a kernel's code, as far as its file's name tells."""
    return isinstance(kernel._cache, _Cache) and kernel._cache.has_code()


def kernel(function: Callable[..., Any]) -> Any:
    """Compile on first use: no Python objects, no GIL, strict arithmetic, kept on disk. numba's settings for other code stay as they are.

    Nothing is allocated, so no references to arrays are counted either (`_nrt`): each part of a kernel that takes an array would count one at every call.
    """
    dispatcher = njit(nogil=True, no_cfunc_wrapper=True, error_model="numpy", _nrt=False, pipeline_class=KernelCompiler)(function)
    home = folder()
    if home is not None:
        before = config.CACHE_DIR, getattr(config, "CACHE_LOCATOR_CLASSES", "")
        config.CACHE_DIR, config.CACHE_LOCATOR_CLASSES = str(home), ""
        try:
            dispatcher._cache = _Cache(function)
        except (OSError, RuntimeError):  # vanished since it was found
            pass
        finally:
            config.CACHE_DIR, config.CACHE_LOCATOR_CLASSES = before
    dispatcher._compilation_chain_init_hook = lambda: None  # a search of all installed packages for numba's extensions, whose types no kernel takes
    dispatcher.is_kernel = True
    return dispatcher


inlined = njit(forceinline=True, nogil=True, error_model="numpy", _nrt=False, pipeline_class=KernelCompiler)
"""For small parts of kernels: compiled by themselves, then put in the place of each call. Each level of these optimises all below it again: nest one or two."""


def piece(signature: Any) -> Callable[[Callable[..., Any]], Any]:
    """For large parts of kernels, with their types: compiled straight into the kernel that calls them, so that however deep they nest all is optimised once."""

    def wrap(function: Callable[..., Any]) -> Any:
        def generate(context: Any, builder: Any, sig: Any, values: Any) -> Any:
            library = context.active_code_library
            made = library.__dict__.setdefault("modelcodec_pieces", {})
            if function not in made:
                flags = Flags()
                flags.no_compile = flags.no_cpython_wrapper = flags.no_cfunc_wrapper = True
                flags.error_model = "numpy"
                types, result = context.typing_context, sig.return_type
                made[function] = compile_extra(types, context, function, sig.args, result, flags, {}, library, KernelCompiler).fndesc
            return context.call_internal(builder, made[function], sig, values)

        def definition(context: Any, *arguments: Any) -> Any:
            return signature, generate

        definition.__name__, definition.__doc__ = function.__name__, function.__doc__
        names = ("context", *inspect.signature(function).parameters)  # numba cannot call intrinsics with *arguments, and asks this instead
        definition.__signature__ = inspect.Signature([inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names])  # type: ignore[attr-defined]
        return intrinsic(definition)

    return wrap
