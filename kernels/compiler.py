"""numba's compiler without what kernels have no use for: it takes three quarters of the time, and makes the same machine code."""

from __future__ import annotations

import gc
from typing import Any

from numba.core import types
from numba.core.compiler import CompilerBase, DefaultPassBuilder

_UNUSED_PASSES = frozenset((
    "with_lifting",
    "inline_closure_likes",
    "Rewrite dynamic raises",
    "make_function_op_code_to_jit_function",
    "inline_inlinables",
    "find_literally",
    "literal_unroll",
    "LiteralPropagation",
    "inline_overloads",
    "nopython_rewrites",
    "nopython_supported_feature_validation",
    "annotate_types",
    "dump_parfor_diagnostics",
))  # fmt: skip
"""For `with`, closures, exceptions, literals of containers and expressions of arrays. Names that a version of numba does not have do no harm."""

_signatures: dict[Any, Any] = {}
"""What numba's search through all meanings of a function, once for each of its uses, has found for numbers."""


class _Types:
    """numba's context of types, except that it remembers what it has found."""

    def __init__(self, context: Any) -> None:
        self._context = context

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def resolve_function_type(self, function: Any, arguments: Any, keywords: Any) -> Any:
        if keywords or not isinstance(function, types.Function) or not all(isinstance(kind, types.Number | types.Boolean) for kind in arguments):
            return self._context.resolve_function_type(function, arguments, keywords)
        key = function, tuple(arguments)
        if key not in _signatures:
            _signatures[key] = self._context.resolve_function_type(function, arguments, keywords)
        return _signatures[key]


class KernelCompiler(CompilerBase):
    """For functions of numbers, addresses and elements of arrays."""

    def __init__(self, typing_context: Any, *others: Any) -> None:
        super().__init__(typing_context, *others)
        self.state.typingctx = _Types(typing_context)

    def compile_extra(self, function: Any) -> Any:
        collects = gc.isenabled()
        gc.disable()  # it would search the compiler's many objects again and again, for an eighth of the time
        try:
            return super().compile_extra(function)
        finally:
            if collects:
                gc.enable()

    def define_pipelines(self) -> list[Any]:
        passes = DefaultPassBuilder.define_nopython_pipeline(self.state)
        passes.passes = [(kind, told) for kind, told in passes.passes if kind.name() not in _UNUSED_PASSES]
        passes.finalize()
        return [passes]
