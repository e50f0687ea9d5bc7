"""Promise: the fixed-length form gives back a matrix bit for bit, and multiplies with it as exactly as plain bf16. Without a GPU, Triton's interpreter runs."""

from __future__ import annotations

import pytest
from triton_device import DEVICE, torch

from modelcodec.runtime import fixed_length
from modelcodec.runtime.fixed_length import MOST_BITS, MOST_VECTORS, FixedLength

SHAPES = [(33, 1024), (16, 2880), (41, 256), (9, 5119), (4, 512), (1, 2048)]


def matrix(n_rows: int, n_columns: int, scale: float = 0.02) -> torch.Tensor:
    generator = torch.Generator().manual_seed(n_rows)
    return (torch.randn(n_rows, n_columns, generator=generator) * scale).bfloat16()


def odd_numbers(weight: torch.Tensor) -> torch.Tensor:
    """The matrix with zeros of both signs, subnormals and numbers far from the others."""
    flat = weight.view(-1)
    flat[3::37], flat[5::401] = 0.0, -0.0
    flat[7::1999], flat[8::1999], flat[11::1999] = 1e30, -1e-30, 1e-39
    return weight


def form_of(weight: torch.Tensor) -> FixedLength:
    form = FixedLength.of(weight.to(DEVICE))
    assert form is not None
    return form


def unpacked(form: FixedLength) -> torch.Tensor:
    out = torch.empty(form.n_rows, form.n_columns, dtype=torch.bfloat16, device=DEVICE)
    form.unpack(out)
    return out.cpu()


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.view(torch.int16), b.view(torch.int16))


@pytest.mark.parametrize(("n_rows", "n_columns"), SHAPES)
def test_a_matrix_comes_back_bit_for_bit(n_rows: int, n_columns: int) -> None:
    weight = odd_numbers(matrix(n_rows, n_columns))
    form = form_of(weight)
    assert same_bits(unpacked(form), weight)
    assert 12 * weight.numel() <= 8 * form.n_bytes <= MOST_BITS * weight.numel()


def test_infinities_and_nans_come_back() -> None:
    weight = matrix(8, 1024)
    patterns = torch.tensor([0x7F80, -0x80, 0x7FC1, 0x7FFF, -1, 1, -0x7FFF], dtype=torch.int16)
    weight.view(torch.int16).view(-1)[100 : 100 + patterns.numel()] = patterns
    assert same_bits(unpacked(form_of(weight)), weight)


@pytest.mark.parametrize(("n_rows", "n_columns"), SHAPES)
def test_products_are_those_of_the_weights(n_rows: int, n_columns: int) -> None:
    """Within the error of sums in float32; as bfloat16, rounded to a neighbour."""
    weight = odd_numbers(matrix(n_rows, n_columns))
    weight[weight.abs() > 1e20] = 3.0
    x = torch.randn(n_columns, generator=torch.Generator().manual_seed(1)).bfloat16()
    form = form_of(weight)
    found = form.multiply(x.to(DEVICE), out=torch.empty(n_rows, device=DEVICE)).cpu()
    exact = weight.double() @ x.double()
    assert ((found - exact).abs() <= weight.double().abs() @ x.double().abs() * 2**-20).all()
    rounded = form.multiply(x.to(DEVICE)).cpu().float()
    assert ((rounded - found).abs() <= found.abs() * 2**-7).all()


@pytest.mark.parametrize("n", range(1, MOST_VECTORS + 1))
def test_several_vectors_and_a_bias(n: int) -> None:
    """Each vector as if it were alone."""
    weight = odd_numbers(matrix(7, 512))
    weight[weight.abs() > 1e20] = 3.0
    generator = torch.Generator().manual_seed(n)
    x, bias = torch.randn(n, 512, generator=generator).bfloat16(), torch.randn(7, generator=generator).bfloat16()
    form = form_of(weight)
    found = form.multiply(x.to(DEVICE), bias.to(DEVICE), torch.empty(n, 7, device=DEVICE)).cpu()
    exact = x.double() @ weight.double().t() + bias.double()
    assert ((found - exact).abs() <= (x.double().abs() @ weight.double().t().abs() + bias.abs()) * 2**-20).all()
    alone = torch.stack([form.multiply(row, bias.to(DEVICE)) for row in x.to(DEVICE)])
    assert same_bits(form.multiply(x.to(DEVICE), bias.to(DEVICE)).cpu(), alone.cpu())


def test_rows_that_are_asked_for() -> None:
    """With escaped weights in several blocks of a row; no row of another number is read."""
    weight = odd_numbers(matrix(9, 5119))
    chosen = torch.tensor([[3, 0, 8], [3, 9, -1]])
    found = form_of(weight).rows(chosen.to(DEVICE)).cpu()
    assert found.shape == (2, 3, 5119)
    assert same_bits(found.view(6, -1)[:4], weight[[3, 0, 8, 3]])
    assert found.view(6, -1)[4:].isnan().all()


def test_a_large_matrix_is_laid_out_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = odd_numbers(matrix(9, 1024))
    whole = form_of(weight)
    monkeypatch.setattr(fixed_length, "CHUNK_WEIGHTS", 2500)
    pieces = form_of(weight)
    for name in ("signed_mantissas", "codes", "row_starts", "places", "values"):
        assert torch.equal(getattr(whole, name), getattr(pieces, name)), name


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1.0, 1e10])
def test_small_and_large_weights(scale: float) -> None:
    weight = matrix(5, 512, scale)
    form = form_of(weight)
    assert same_bits(unpacked(form), weight)
    x = torch.zeros(512, dtype=torch.bfloat16)
    x[17] = 1.5
    assert torch.equal(form.multiply(x.to(DEVICE), out=torch.empty(5, device=DEVICE)).cpu(), weight[:, 17].float() * 1.5)


def test_a_result_goes_into_the_given_memory() -> None:
    form, x = form_of(matrix(6, 512)), torch.ones(1, 1, 512, dtype=torch.bfloat16, device=DEVICE)
    out = torch.zeros(6, dtype=torch.bfloat16, device=DEVICE)
    assert form.multiply(x, out=out) is out
    assert same_bits(form.multiply(x).cpu(), out.view(1, 1, 6).cpu())


def test_what_does_not_pay_is_left_alone() -> None:
    generator = torch.Generator().manual_seed(2)
    wide = torch.exp2(torch.randint(-60, 60, (16, 1024), generator=generator).float()).bfloat16()
    assert FixedLength.of(wide.to(DEVICE)) is None
    assert FixedLength.of(matrix(7, 300).to(DEVICE)) is None


def test_other_dtypes_and_shapes_are_refused() -> None:
    form = form_of(matrix(6, 512))
    with pytest.raises(ValueError, match="bfloat16 is wanted"):
        FixedLength.of(torch.zeros(6, 512))
    with pytest.raises(ValueError, match="of 512 bfloat16 are wanted"):
        form.multiply(torch.zeros(511, dtype=torch.bfloat16, device=DEVICE))
    with pytest.raises(ValueError, match="6 contiguous"):
        form.multiply(torch.zeros(512, dtype=torch.bfloat16, device=DEVICE), out=torch.zeros(5, device=DEVICE))
    with pytest.raises(ValueError, match="matrix of bfloat16 with 512"):
        form.unpack(torch.zeros(6, 510, dtype=torch.bfloat16, device=DEVICE))
    with pytest.raises(ValueError, match="6 rows are wanted"):
        form.unpack(torch.zeros(512, 6, dtype=torch.bfloat16, device=DEVICE))
    with pytest.raises(ValueError, match="1 to 4"):
        form.multiply(torch.zeros(5, 512, dtype=torch.bfloat16, device=DEVICE))
