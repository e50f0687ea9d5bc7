"""L2: steps learned with the weights until the file takes its share of the bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

from digits import accuracy, check_method, digits_task, perceptron  # noqa: E402

from modelcodec.errors import BadRecipe  # noqa: E402
from modelcodec.fit.training import parse_method  # noqa: E402
from modelcodec.fit.training.l2 import L2, Transform, counted_bits  # noqa: E402
from modelcodec.fit.training.loop import train  # noqa: E402
from modelcodec.formats import container  # noqa: E402


def test_trains_resumes_and_meets_the_ratio(tmp_path: Path) -> None:
    trained, path = check_method(L2(12.0), digits_task(), tmp_path)
    archive = container.read(memoryview(path.read_bytes()), "l2")
    entries = [entry for entry in archive.tensors if len(entry.spec.shape) > 1]
    n_weights, n_bytes = sum(entry.spec.n_words for entry in entries), sum(entry.size for entry in entries)
    assert n_bytes < 4 * n_weights / 12 + 150 * len(entries)  # entries of codebooks, heads and digests are not in the count
    assert all(str(archive.frame_head(entry, 0).root).startswith("codebook") for entry in entries)
    assert accuracy(trained.model) > 0.7


def test_what_is_counted_is_the_entropy_and_falls_along_its_gradient() -> None:
    torch.manual_seed(0)
    x = (5 * torch.randn(20000)).requires_grad_()
    counts = x.detach().round().unique(return_counts=True)[1].double()
    entropy = float(-(counts * (counts / 20000).log2()).sum())
    bits = counted_bits(x)
    assert abs(float(bits.detach()) - entropy) < 0.02 * entropy
    bits.backward()
    assert x.grad is not None
    with torch.no_grad():
        assert float(counted_bits(x - 0.2 * x.grad.sign())) < float(bits.detach())
    small = torch.randn(30, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(counted_bits, small)


@pytest.mark.parametrize("place", [0.25, 0.250001, 0.25001, 0.2501])
def test_weights_that_barely_count_for_an_empty_index_have_a_gradient(place: float) -> None:
    x = torch.tensor([0.0, place, -0.1], requires_grad=True)
    counted_bits(x).backward()
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())
    assert -1e-6 < float(x.grad[1]) < 0.1  # the cosine of half of pi is not quite 0


def test_weights_up_to_the_edge_are_zero_and_others_on_steps_of_the_scale() -> None:
    torch.manual_seed(0)
    transform = Transform(0.1)
    with torch.no_grad():
        transform.log_edge.fill_(-2.0)
    weight = torch.randn(50, 50)
    value, edge = transform(weight), float(transform.log_edge.detach().exp())
    inside = weight.abs() < edge
    assert bool((value[inside] == 0).all())
    steps = (value[~inside].abs() - edge) / 0.1 + 0.5
    assert torch.allclose(steps, steps.round(), atol=1e-3)
    assert float((value - weight)[~inside].abs().max()) < 0.0501


def test_a_higher_ratio_is_a_smaller_file(tmp_path: Path) -> None:
    sizes = [train(digits_task(epochs=1), L2(ratio, distill=0.0)).save(tmp_path / f"{ratio}").n_bytes_coded for ratio in (6.0, 12.0, 24.0)]
    assert sizes[0] > sizes[1] > sizes[2]


def test_the_ratio_is_met_while_there_is_time_to_adapt() -> None:
    training = L2(20.0).begin(perceptron())
    transforms = [transform for _, transform in training.transforms]
    with torch.no_grad():
        for transform in transforms:
            transform.log_scale -= 2
            transform.log_edge -= 2
    fine = [float(transform.log_scale) for transform in transforms]
    training.after_step(0.5)
    assert [float(transform.log_scale) for transform in transforms] == fine
    training.after_step(0.6)
    assert all(float(transform.log_scale) > before for transform, before in zip(transforms, fine, strict=True))


def test_bad_options_are_refused() -> None:
    for text in ("l2(1)", "l2(10, price=-1)", "l2(10, distill=-1)"):
        with pytest.raises(BadRecipe, match="l2"):
            parse_method(text)
    assert parse_method("l2(10, distill=0)") == L2(10.0, distill=0.0)
    zeros = torch.nn.Linear(20, 20)
    torch.nn.init.zeros_(zeros.weight)
    with pytest.raises(BadRecipe, match="nothing but zeros"):
        L2(10.0).begin(zeros)
