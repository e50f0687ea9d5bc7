"""What all tests share: hypothesis without deadlines (kernels compile on first use) and with the same examples each time."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

if shutil.which("nvidia-smi") is None:
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported, which some libraries do

settings.register_profile("modelcodec", deadline=None, derandomize=True, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("modelcodec")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread for torch: small operations on several wait for each other longer than they work."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
