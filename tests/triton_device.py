"""Where the GPU's kernels run in tests: on a GPU, or in Triton's interpreter, for which TRITON_INTERPRET=1 must be set before anything imports triton."""

from __future__ import annotations

import os

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
if DEVICE == "cuda" and not torch.cuda.is_available():
    pytest.skip("there is no GPU, and TRITON_INTERPRET=1 is not set", allow_module_level=True)
