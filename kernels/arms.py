"""Which arm of the kernels runs on this processor; known before anything is compiled.

An x86 intrinsic compiled for a processor without it aborts the whole process, so an arm is chosen from what numba will compile for, never by trying. A new arm
is a name here, a file `rans_<arm>.py` and a line in `rans.py`. All arms give the same bytes.
"""

from __future__ import annotations

from llvmlite import binding
from numba.core import config

AVX512VBMI = frozenset(("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vbmi", "avx512vbmi2", "bmi2", "popcnt"))
_NAMES_WITH_AVX512VBMI = frozenset(
    ("icelake-client", "icelake-server", "tigerlake", "rocketlake", "sapphirerapids", "emeraldrapids", "graniterapids", "graniterapids-d", "znver4", "znver5")
)


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


def _has(wanted: frozenset[str]) -> bool:
    """Whether the processor has these features and the user's settings, if any, allow them."""
    name, features = host()
    if not config.ENABLE_AVX or not all(features.get(feature) for feature in wanted):
        return False
    if config.CPU_FEATURES is not None:
        return wanted <= {feature[1:] for feature in config.CPU_FEATURES.replace(" ", "").split(",") if feature.startswith("+")}
    return config.CPU_NAME in (None, name) or config.CPU_NAME in _NAMES_WITH_AVX512VBMI


def choose() -> str:
    """The fastest arm that may run: `avx512vbmi` or `scalar`."""
    return "avx512vbmi" if _has(AVX512VBMI) else "scalar"


ARM = choose()
