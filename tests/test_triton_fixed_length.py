"""Promise: what test_fixed_length.py promises, on a GPU. Without one, Triton's interpreter runs."""

from __future__ import annotations

import pytest
from test_fixed_length import (
    form_of,
    matrix,
    same_bits,
    test_a_matrix_comes_back_bit_for_bit,
    test_a_result_goes_into_the_given_memory,
    test_infinities_and_nans_come_back,
    test_other_dtypes_and_shapes_are_refused,
    test_products_are_those_of_the_weights,
    test_rows_that_are_asked_for,
    test_several_vectors_and_a_bias,
    test_small_and_large_weights,
    test_what_does_not_pay_is_left_alone,
)
from triton_device import DEVICE, torch

from modelcodec.runtime import gpu

__all__ = [
    "test_a_matrix_comes_back_bit_for_bit",
    "test_a_result_goes_into_the_given_memory",
    "test_infinities_and_nans_come_back",
    "test_other_dtypes_and_shapes_are_refused",
    "test_products_are_those_of_the_weights",
    "test_rows_that_are_asked_for",
    "test_several_vectors_and_a_bias",
    "test_small_and_large_weights",
    "test_what_does_not_pay_is_left_alone",
]


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(gpu, "KINDS", frozenset({"cuda", DEVICE}))
    return DEVICE


def test_a_row_that_is_not_there_is_nans() -> None:
    """No other row is read in its place."""
    weight = matrix(9, 512)
    found = form_of(weight, DEVICE).rows(torch.tensor([3, 9, -1], device=DEVICE)).cpu()
    assert same_bits(found[:1], weight[3:4])
    assert found[1:].isnan().all()
