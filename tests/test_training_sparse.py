"""Methods that train with zeros: pruning along a schedule, by a pull to zero, in blocks; and weights unified or orthogonal."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

from digits import Residual, accuracy, check_method, digits_task, perceptron  # noqa: E402

import modelcodec  # noqa: E402
from modelcodec.errors import BadRecipe  # noqa: E402
from modelcodec.fit.kmeans import KMeans  # noqa: E402
from modelcodec.fit.training import BlockDiagonal, Gradual, HyperSparse, Orthogonal, Unification, parse_method  # noqa: E402
from modelcodec.fit.training.loop import train  # noqa: E402
from modelcodec.fit.training.method import Trained  # noqa: E402
from modelcodec.fit.training.orthogonal import isometric, squared_cosines  # noqa: E402
from modelcodec.fit.training.unification import projected  # noqa: E402


def matrices(model: torch.nn.Module) -> list[np.ndarray]:
    return [p.detach().numpy() for name, p in model.named_parameters() if p.dim() > 1 and p.numel() >= 256]


def bits_of(path: Path) -> float:
    """Bits a weight of the matrices, all bytes of their frames counted."""
    tensors = [t for t in modelcodec.inspect(path).tensors if len(t.shape) > 1 and t.n_weights >= 256]
    return 8 * sum(t.n_bytes_coded for t in tensors) / sum(t.n_weights for t in tensors)


@cache
def first() -> Trained:
    return train(digits_task(epochs=6), Gradual(0.0))


def again() -> torch.nn.Module:
    net = perceptron()
    net.load_state_dict(first().model.state_dict())
    return net


def test_gradual_pruning_reaches_its_share_and_keeps_its_zeros(tmp_path: Path) -> None:
    trained, path = check_method(Gradual(0.75, end=0.5, updates=20), digits_task(), tmp_path)
    for matrix in matrices(trained.model):
        assert np.count_nonzero(matrix == 0) == int(0.75 * matrix.size)
        assert not np.signbit(matrix[matrix == 0]).any()
    assert accuracy(trained.model) > 0.5
    assert bits_of(path) < 0.25 * 30 + 0.82 + 0.6  # values, the mask's entropy, and what frames of so few weights cost


def test_gradual_pruning_takes_blocks_and_the_whole_model() -> None:
    trained = train(digits_task(Residual, 1), Gradual(0.5, whole_model=True, block=3))
    rows = [matrix.reshape(-1, 3) for matrix in matrices(trained.model)]
    zero = [(block == 0).any(axis=1) for block in rows]
    assert all((block == 0).all(axis=1)[gone].all() for block, gone in zip(rows, zero, strict=True))
    assert 0.49 < np.concatenate(zero).mean() <= 0.5


def test_zeros_stay_when_a_fit_follows(tmp_path: Path) -> None:
    trained = train(digits_task(epochs=2), Gradual(0.8))
    path = tmp_path / "deep.mcodec.safetensors"
    Trained(trained.model, KMeans(16)).save(path)
    for name, tensor in modelcodec.load_file(path).items():
        if tensor.ndim > 1 and tensor.size >= 256:
            before = trained.model.state_dict()[name].numpy()
            assert ((tensor == 0) == (before == 0)).all()
            assert np.unique(tensor).size <= 16


def test_hypersparse_drives_small_weights_to_zero_and_masks_them(tmp_path: Path) -> None:
    trained, _ = check_method(HyperSparse(0.8), digits_task(), tmp_path)
    zeros = np.concatenate([(matrix == 0).reshape(-1) for matrix in matrices(trained.model)])
    assert int(0.8 * zeros.size) == zeros.sum()
    assert accuracy(trained.model) > 0.6


def test_mpd_leaves_permuted_blocks(tmp_path: Path) -> None:
    trained, path = check_method(BlockDiagonal(4), digits_task(again), tmp_path)
    for matrix in matrices(trained.model):
        kept = matrix != 0
        patterns = np.unique(kept, axis=0)
        assert len(patterns) == 4
        assert (patterns.sum(axis=0) == 1).all()
    assert accuracy(trained.model) > accuracy(BlockDiagonal(4).begin(again()).finish().model) + 0.1
    assert bits_of(path) < 32 / 4 + 1


def test_unification_gives_a_block_one_magnitude(tmp_path: Path) -> None:
    method = Unification(block=4, magnitudes=8, share=0.5)
    trained, path = check_method(method, digits_task(again, epochs=4), tmp_path)
    for matrix in matrices(trained.model):
        blocks = np.abs(matrix.reshape(-1, 4))
        assert (blocks == blocks[:, :1]).all()
        assert np.unique(blocks).size <= 9
        assert (blocks[:, 0] == 0).sum() >= len(blocks) // 2
    at_once = again()
    for p in at_once.parameters():
        if p.dim() > 1 and p.numel() >= 256:
            sign, place, levels = projected(p.detach(), method)
            p.data = torch.cat((torch.zeros(1), levels))[place.long()] * sign
    assert accuracy(trained.model) > accuracy(at_once) + 0.05
    assert bits_of(path) < 4  # 1 + 7 / 8 by entropy; codebooks of 4 bytes a number weigh much in so small a net


def test_orthogonal_rows_come_nearer(tmp_path: Path) -> None:
    plain = train(digits_task(epochs=1), Orthogonal(0.0))
    trained, _ = check_method(Orthogonal(1e-2), digits_task(), tmp_path)
    assert sum(float(squared_cosines(torch.from_numpy(m))) for m in matrices(trained.model)) < 0.5 * sum(
        float(squared_cosines(torch.from_numpy(m))) for m in matrices(plain.model)
    )


def test_the_isometric_matrix_has_the_same_norm_and_zeros() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(12, 40, generator=generator)
    dense = isometric(weight)
    assert torch.allclose(dense @ dense.T, torch.eye(12) * weight.norm() ** 2 / 12, atol=1e-3)
    mask = torch.rand(12, 40, generator=generator) < 0.5
    sparse = isometric(weight * mask)
    assert not sparse[~mask].any()
    assert torch.allclose(sparse.norm(), (weight * mask).norm())
    assert squared_cosines(sparse) < 0.05 * squared_cosines(weight * mask)
    tall = isometric(weight.T)
    assert torch.allclose(tall.T @ tall, torch.eye(12) * weight.norm() ** 2 / 12, atol=1e-3)


def test_recovery_works_below_a_mask() -> None:
    trained = train(digits_task(epochs=1), parse_method("gradual(0.5, end=0.1) | orthogonal(1e-3, recover=true)"))
    assert all((matrix == 0).mean() >= 0.49 for matrix in matrices(trained.model))


@pytest.mark.parametrize("text", ["gradual(1.0)", "hypersparse(0)", "mpd(1)", "unification(block=9)", "orthogonal(-1)", "gradual(0.5, start=0.7)"])
def test_options_out_of_range_are_refused(text: str) -> None:
    with pytest.raises(BadRecipe):
        parse_method(text)
