"""Run a benchmark suite: `python benchmarks/run.py lossless [--data FOLDER] [--quick] [--files NAME...]` (`pip install ".[benchmark]"` brings the peers)."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SUITES = {
    "lossless": "benchmarks.lossless",
    "arms": "benchmarks.arms",
    "quantized": "benchmarks.quantized",
    "lossy": "benchmarks.lossy",
    "accuracy": "benchmarks.accuracy",
    "train": "benchmarks.train",
    "train_options": "benchmarks.train_options",
    "load": "benchmarks.load",
    "start": "benchmarks.start",
    "file_to_file": "benchmarks.file_to_file",
    "memory": "benchmarks.memory",
    "tokens": "benchmarks.tokens",
    "gpu": "benchmarks.gpu",
    "hub": "benchmarks.hub",
}


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure modelcodec and its peers on real checkpoints, in one run, in memory.")
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="checkpoints to measure (default: $MODELCODEC_DATA, else ../shared/data)")
    parser.add_argument("--files", nargs="+", metavar="NAME", help="only files whose name contains one of these")
    parser.add_argument("--quick", action="store_true", help="one timed pass and a small synthetic file; prints, writes no results")
    options = parser.parse_args()
    # The checkout's own modelcodec and benchmarks, wherever this is started from.
    sys.path[0] = str(ROOT)
    code: int = import_module(SUITES[options.suite]).run(ROOT, options.data, options.files, options.quick)
    return code


if __name__ == "__main__":
    sys.exit(main())
