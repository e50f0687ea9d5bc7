"""Which arm of the kernels runs on this processor; known before anything is compiled.

An intrinsic compiled for a processor without it aborts the whole process, so an arm is chosen from what numba will compile for, never by trying. A new arm is a
name here and lines in `rans.py` and `class_rans.py`. All arms give the same bytes.

* avx512vbmi: x86-64 with AVX-512 VBMI2. Vectors of 16 states; tables lie in registers, those of `class_rans` are gathered from.
* avx2: x86-64 with AVX2, also with less of AVX-512. Vectors of 8 states; tables lie in memory.
* sse41: x86-64 with SSE4.1. The same with 4 states.
* neon: 64-bit ARM. The same with 4 states.
* vector: all others. States go one by one, the rest as vectors that LLVM makes the best of.
* scalar: no vectors at all, where numba is told not to optimise (`NUMBA_OPT=0`), and where pointers have 32 bits.
"""

from __future__ import annotations

import platform
import sys

from llvmlite import binding
from numba.core import config

X86 = platform.machine().lower() in ("x86_64", "amd64")
ARM64 = platform.machine().lower() in ("aarch64", "arm64")

# What an arm takes for granted, and the names of processors that have it, for users who name one; other names are taken to have nothing.
_AVX512VBMI = frozenset(("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vbmi", "avx512vbmi2", "bmi2", "popcnt"))
_NAMES_WITH_AVX512VBMI = frozenset(
    ("icelake-client", "icelake-server", "tigerlake", "rocketlake", "sapphirerapids", "emeraldrapids", "graniterapids", "graniterapids-d", "znver4", "znver5")
)
_AVX2 = frozenset(("avx2", "ssse3", "popcnt"))
_NAMES_WITH_AVX2 = _NAMES_WITH_AVX512VBMI | frozenset(
    ("haswell", "core-avx2", "broadwell", "skylake", "skylake-avx512", "skx", "cascadelake", "cooperlake", "cannonlake", "alderlake", "raptorlake",
     "meteorlake", "gracemont", "arrowlake", "arrowlake-s", "lunarlake", "pantherlake", "sierraforest", "grandridge", "clearwaterforest", "bdver4", "znver1",
     "znver2", "znver3", "x86-64-v3", "x86-64-v4")
)  # fmt: skip
_SSE41 = frozenset(("sse4.1", "ssse3", "popcnt"))
_NAMES_WITH_SSE41 = _NAMES_WITH_AVX2 | frozenset(
    ("nehalem", "corei7", "westmere", "sandybridge", "corei7-avx", "ivybridge", "core-avx-i", "silvermont", "slm", "goldmont", "goldmont-plus", "tremont",
     "btver2", "bdver1", "bdver2", "bdver3", "x86-64-v2")
)  # fmt: skip


def host() -> tuple[str, dict[str, bool]]:
    """Name and features of the processor itself, as LLVM calls them. No features where LLVM cannot tell."""
    try:
        return binding.get_host_cpu_name(), dict(binding.get_host_cpu_features())
    except RuntimeError:
        return "generic", {}


def target() -> tuple[str, str]:
    """Name and features that numba compiles for: the processor's own, or those of `NUMBA_CPU_NAME` and `NUMBA_CPU_FEATURES`."""
    name, features = host()
    flat = ",".join(f"{'+' if has else '-'}{feature}" for feature, has in sorted(features.items()))
    return (name if config.CPU_NAME is None else config.CPU_NAME, flat if config.CPU_FEATURES is None else config.CPU_FEATURES)


def _has(wanted: frozenset[str], names: frozenset[str]) -> bool:
    """Whether the processor has these features and the user's settings, if any, allow them."""
    name, features = host()
    if not all(features.get(feature) for feature in wanted) or (not config.ENABLE_AVX and any(feature.startswith("avx") for feature in wanted)):
        return False
    if config.CPU_FEATURES:
        return wanted <= {feature[1:] for feature in config.CPU_FEATURES.replace(" ", "").split(",") if feature.startswith("+")}
    return config.CPU_NAME in (None, name) or config.CPU_NAME in names


def choose() -> str:
    """The fastest arm that may run."""
    if sys.maxsize < 1 << 32 or int(config.OPT) == 0:
        return "scalar"
    if X86 and _has(_AVX512VBMI, _NAMES_WITH_AVX512VBMI):
        return "avx512vbmi"
    if X86 and _has(_AVX2, _NAMES_WITH_AVX2):
        return "avx2"
    if X86 and _has(_SSE41, _NAMES_WITH_SSE41):
        return "sse41"
    return "neon" if ARM64 and "-neon" not in (config.CPU_FEATURES or "") else "vector"


ARM = choose()
