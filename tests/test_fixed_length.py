"""Promise: the fixed-length form gives back a matrix bit for bit, and multiplies with it as exactly as plain bf16. Here on the CPU; on a GPU, the same tests in
test_triton_fixed_length.py."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from modelcodec.kernels.fixed_length import MOST_VECTORS  # noqa: E402
from modelcodec.runtime import fixed_length_cpu  # noqa: E402
from modelcodec.runtime.fixed_length import MOST_BITS, FixedLength  # noqa: E402

SHAPES = [(33, 1024), (16, 2880), (41, 256), (9, 5119), (4, 512), (1, 2048)]


@pytest.fixture
def device() -> str:
    return "cpu"


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """That share even small matrices."""
    monkeypatch.setattr(fixed_length_cpu, "TASK_WEIGHTS", 1 << 10)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def matrix(n_rows: int, n_columns: int, scale: float = 0.02) -> Any:
    generator = torch.Generator().manual_seed(n_rows)
    return (torch.randn(n_rows, n_columns, generator=generator) * scale).bfloat16()


def odd_numbers(weight: Any) -> Any:
    """The matrix with zeros of both signs, subnormals and numbers far from the others."""
    flat = weight.view(-1)
    flat[3::37], flat[5::401] = 0.0, -0.0
    flat[7::1999], flat[8::1999], flat[11::1999] = 1e30, -1e-30, 1e-39
    return weight


def form_of(weight: Any, device: str) -> FixedLength:
    form = FixedLength.of(weight.to(device))
    assert form is not None
    return form


def unpacked(form: FixedLength, device: str) -> Any:
    out = torch.empty(form.n_rows, form.n_columns, dtype=torch.bfloat16, device=device)
    form.unpack(out)
    return out.cpu()


def same_bits(a: Any, b: Any) -> bool:
    return torch.equal(a.view(torch.int16), b.view(torch.int16))


@pytest.mark.parametrize(("n_rows", "n_columns"), SHAPES)
def test_a_matrix_comes_back_bit_for_bit(n_rows: int, n_columns: int, device: str) -> None:
    weight = odd_numbers(matrix(n_rows, n_columns))
    form = form_of(weight, device)
    assert same_bits(unpacked(form, device), weight)
    assert 12 * weight.numel() <= 8 * form.n_bytes <= MOST_BITS * weight.numel()


def test_infinities_and_nans_come_back(device: str) -> None:
    weight = matrix(8, 1024)
    patterns = torch.tensor([0x7F80, -0x80, 0x7FC1, 0x7FFF, -1, 1, -0x7FFF], dtype=torch.int16)
    weight.view(torch.int16).view(-1)[100 : 100 + patterns.numel()] = patterns
    assert same_bits(unpacked(form_of(weight, device), device), weight)


@pytest.mark.parametrize(("n_rows", "n_columns"), SHAPES)
def test_products_are_those_of_the_weights(n_rows: int, n_columns: int, device: str) -> None:
    """Within the error of sums in float32; as bfloat16, rounded to a neighbour."""
    weight = odd_numbers(matrix(n_rows, n_columns))
    weight[weight.abs() > 1e20] = 3.0
    x = torch.randn(n_columns, generator=torch.Generator().manual_seed(1)).bfloat16()
    form = form_of(weight, device)
    found = form.multiply(x.to(device), out=torch.empty(n_rows, device=device)).cpu()
    exact = weight.double() @ x.double()
    assert ((found - exact).abs() <= weight.double().abs() @ x.double().abs() * 2**-20).all()
    rounded = form.multiply(x.to(device)).cpu().float()
    assert ((rounded - found).abs() <= found.abs() * 2**-7).all()


@pytest.mark.parametrize("n", range(1, MOST_VECTORS + 1))
def test_several_vectors_and_a_bias(n: int, device: str) -> None:
    """Each vector as if it were alone."""
    weight = odd_numbers(matrix(7, 512))
    weight[weight.abs() > 1e20] = 3.0
    generator = torch.Generator().manual_seed(n)
    x, bias = torch.randn(n, 512, generator=generator).bfloat16(), torch.randn(7, generator=generator).bfloat16()
    form = form_of(weight, device)
    found = form.multiply(x.to(device), bias.to(device), torch.empty(n, 7, device=device)).cpu()
    exact = x.double() @ weight.double().t() + bias.double()
    assert ((found - exact).abs() <= (x.double().abs() @ weight.double().t().abs() + bias.abs()) * 2**-20).all()
    alone = torch.stack([form.multiply(row, bias.to(device)) for row in x.to(device)])
    assert same_bits(form.multiply(x.to(device), bias.to(device)).cpu(), alone.cpu())


def test_rows_that_are_asked_for(device: str) -> None:
    """With escaped weights in several blocks of a row."""
    weight = odd_numbers(matrix(9, 5119))
    chosen = torch.tensor([[3, 0, 8], [3, 1, 1]])
    found = form_of(weight, device).rows(chosen.to(device)).cpu()
    assert found.shape == (2, 3, 5119)
    assert same_bits(found.view(6, -1), weight[chosen.view(-1)])


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1.0, 1e10])
def test_small_and_large_weights(scale: float, device: str) -> None:
    weight = matrix(5, 512, scale)
    form = form_of(weight, device)
    assert same_bits(unpacked(form, device), weight)
    x = torch.zeros(512, dtype=torch.bfloat16)
    x[17] = 1.5
    assert torch.equal(form.multiply(x.to(device), out=torch.empty(5, device=device)).cpu(), weight[:, 17].float() * 1.5)


def test_a_result_goes_into_the_given_memory(device: str) -> None:
    form, x = form_of(matrix(6, 512), device), torch.ones(1, 1, 512, dtype=torch.bfloat16, device=device)
    out = torch.zeros(6, dtype=torch.bfloat16, device=device)
    assert form.multiply(x, out=out) is out
    assert same_bits(form.multiply(x).cpu(), out.view(1, 1, 6).cpu())


def test_what_does_not_pay_is_left_alone(device: str) -> None:
    generator = torch.Generator().manual_seed(2)
    wide = torch.exp2(torch.randint(-60, 60, (16, 1024), generator=generator).float()).bfloat16()
    assert FixedLength.of(wide.to(device)) is None
    assert FixedLength.of(matrix(7, 300).to(device)) is None


def test_other_dtypes_and_shapes_are_refused(device: str) -> None:
    form = form_of(matrix(6, 512), device)
    with pytest.raises(ValueError, match="bfloat16 is wanted"):
        FixedLength.of(torch.zeros(6, 512))
    with pytest.raises(ValueError, match="of 512 bfloat16 are wanted"):
        form.multiply(torch.zeros(511, dtype=torch.bfloat16, device=device))
    with pytest.raises(ValueError, match="6 contiguous"):
        form.multiply(torch.zeros(512, dtype=torch.bfloat16, device=device), out=torch.zeros(5, device=device))
    with pytest.raises(ValueError, match="matrix of bfloat16 with 512"):
        form.unpack(torch.zeros(6, 510, dtype=torch.bfloat16, device=device))
    with pytest.raises(ValueError, match="6 rows are wanted"):
        form.unpack(torch.zeros(512, 6, dtype=torch.bfloat16, device=device))
    with pytest.raises(ValueError, match="1 to 4"):
        form.multiply(torch.zeros(5, 512, dtype=torch.bfloat16, device=device))


# ---- the CPU's own promises ------------------------------------------------------------------------------------------------------------


def test_the_layout_is_the_one_that_is_told() -> None:
    """Read as kernels/triton/fixed_length.py tells, weight for weight."""
    weight = odd_numbers(matrix(3, 2000))
    form = form_of(weight, "cpu")
    codes, signed_mantissas = form.codes.numpy().view("<u4"), form.signed_mantissas.numpy().view("<u4")
    words = np.zeros((3, 2048), np.uint16)
    for row, block, j, i in itertools.product(range(3), range(2048 // (8 * form.part)), range(8), range(form.part)):
        code = codes[row, block * form.part + i] >> 4 * j & 15
        byte = signed_mantissas[row, 2 * block * form.part + form.part * (j // 4) + i] >> 8 * (j % 4) & 255
        words[row, 8 * form.part * block + form.part * j + i] = (byte & 0x80) << 8 | (code + form.base if code else 0) << 7 | byte & 0x7F
    assert not words[:, 2000:].any()
    words[form.places.numpy() // 2000, form.places.numpy() % 2000] = form.values.view(torch.int16).numpy().view("<u2")
    assert (words[:, :2000] == weight.view(torch.int16).numpy().view("<u2")).all()
    assert form.row_starts.tolist() == np.searchsorted(form.places.numpy(), 2000 * np.arange(4)).tolist()


@pytest.mark.parametrize("n", range(1, MOST_VECTORS + 1))
@pytest.mark.parametrize(("n_rows", "n_columns"), SHAPES)
def test_threads_change_nothing(n: int, n_rows: int, n_columns: int, two_threads: None) -> None:
    weight, x = odd_numbers(matrix(n_rows, n_columns)), matrix(n, n_columns, 1.0)
    shared = form_of(weight, "cpu")
    product, again = shared.multiply(x), unpacked(shared, "cpu")
    torch.set_num_threads(1)
    form = form_of(weight, "cpu")
    for name in ("signed_mantissas", "codes", "row_starts", "places", "values"):
        assert torch.equal(getattr(shared, name), getattr(form, name)), name
    assert same_bits(product, form.multiply(x))
    assert same_bits(again, weight)


@pytest.mark.parametrize("scale", [2.0**-100, 2.0**100])
def test_x_may_be_of_any_size(scale: float) -> None:
    """As long as it is finite, products are as exact as others; what they give may be too large or too small for bf16."""
    form, x = form_of(matrix(5, 512), "cpu"), matrix(2, 512, 1.0)
    assert same_bits(form.multiply(x * scale), form.multiply(x) * scale)
    assert not form.multiply(torch.zeros(512, dtype=torch.bfloat16)).any()


@pytest.mark.parametrize("odd", [float("inf"), float("-inf"), float("nan"), 1e30, 1e-39])
def test_odd_weights_and_odd_x_meet_as_they_do_in_torch(odd: float) -> None:
    weight, x = matrix(9, 512), matrix(3, 512, 1.0)
    weight[2, 100], weight[4, 100], weight[4, 101] = odd, odd, -odd
    form = form_of(weight, "cpu")
    for other in (x, torch.where(torch.arange(512) == 100, odd, x), torch.where(torch.arange(512) == 101, odd, x)):
        found, expected = form.multiply(other.contiguous()), torch.nn.functional.linear(other.double(), weight.double()).bfloat16()
        assert torch.equal(found.isnan(), expected.isnan())
        assert torch.allclose(found, expected, rtol=2**-6, atol=2**-6, equal_nan=True)


def test_a_row_that_is_not_there_is_an_error() -> None:
    form = form_of(matrix(9, 512), "cpu")
    for chosen in ([9], [0, -1]):
        with pytest.raises(IndexError, match="there are 9 rows"):
            form.rows(torch.tensor(chosen))
