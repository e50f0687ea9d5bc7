"""What all tests share: hypothesis without deadlines (kernels compile on first use) and with the same examples each time."""

from __future__ import annotations

import os
import shutil

from hypothesis import HealthCheck, settings

if shutil.which("nvidia-smi") is None:
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported, which some libraries do

settings.register_profile("modelcodec", deadline=None, derandomize=True, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("modelcodec")
