"""Promise: each method that trains ends better, at equal bytes of the real file, than its untrained counterpart.

By hand, `MODELCODEC_MORE=FOLDER python -m pytest -m slow tests/test_training_campaign.py`: LeNet on MNIST and ResNet-20 on CIFAR-10, a minute or more each. The
figures that are kept are those of `benchmarks/run.py train`, whose rows these are.
"""

from __future__ import annotations

from pathlib import Path

import pytest

for package in ("torch", "PIL", "zipnn", "openzl"):  # what benchmarks import
    pytest.importorskip(package)

from benchmarks.corpus import data_folder  # noqa: E402
from benchmarks.train import ROWS, Effort, Problem, Row, measured, problems  # noqa: E402
from benchmarks.vision import fetched  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("campaign")


@pytest.fixture(scope="module")
def networks(kept: Path) -> dict[str, Problem]:
    data = data_folder(Path(__file__).parent.parent, None)
    if data is None:
        pytest.skip("no folder of checkpoints ($MODELCODEC_DATA)")
    return {problem.name: problem for problem in problems(fetched(), kept, data, Effort.here(False))}


@pytest.mark.parametrize("row", [row for row in ROWS if row.untrained], ids=lambda row: f"{row.problem}, {row.method}")
def test_training_is_worth_it(row: Row, networks: dict[str, Problem], kept: Path) -> None:
    if row.problem not in networks:
        pytest.skip("no images ($MODELCODEC_MORE with mnist/ and cifar10/)")
    found = measured(row, networks[row.problem], Effort.here(False), kept)
    assert found.untrained_bytes > 0.999 * found.n_bytes
    assert found.accuracy > found.untrained_accuracy
