"""A module whose matrices are kept in the fixed-length form, on the CPU: a few tokens are multiplied from it, everything else is as with frames."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import modelcodec  # noqa: E402
from modelcodec.runtime import compressed_weight as weights  # noqa: E402
from modelcodec.runtime.compressed_module import compress_module, memory_report, save_compressed  # noqa: E402
from modelcodec.runtime.fixed_length import FixedLength  # noqa: E402
from modelcodec.runtime.form_in_memory import FormInMemory  # noqa: E402
from modelcodec.runtime.frames_in_memory import FramesInMemory  # noqa: E402

FEW, MANY = torch.tensor([[3, 0, 3]]), torch.tensor([[1, 2, 3], [4, 5, 0]])


class Wide(torch.nn.Module):
    """Rows wide enough for the form to pay, but for one matrix; a bias, and a tied head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(60, 1024)
        self.up, self.down = torch.nn.Linear(1024, 90), torch.nn.Linear(90, 1024, bias=False)
        self.head = torch.nn.Linear(1024, 60, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Any) -> Any:
        x = self.embedding(tokens)
        return self.head(x + self.down(torch.tanh(self.up(x))))


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def pair() -> tuple[Any, Any]:
    torch.manual_seed(0)
    plain = Wide().bfloat16()
    model = copy.deepcopy(plain)
    compress_module(model, fixed_length=True)
    return model, plain


def same_state(model: Any, plain: Any) -> bool:
    return all(torch.equal(tensor, plain.state_dict()[name]) for name, tensor in model.state_dict().items())


def near(found: Any, expected: Any) -> bool:
    return found.dtype == expected.dtype and found.shape == expected.shape and torch.allclose(found, expected, rtol=2**-5, atol=2**-5)


def test_matrices_that_it_pays_for_have_the_form_and_nothing_else(pair: tuple[Any, Any]) -> None:
    model, _ = pair
    kinds = {name: type(p.store.frames) for name, p in model.named_parameters() if weights.is_compressed(p)}
    assert kinds == {"embedding.weight": FormInMemory, "up.weight": FormInMemory, "down.weight": FramesInMemory}
    report = memory_report(model)
    assert report.kept_bytes < 13 / 16 * report.dense_bytes
    assert report.gpu_bytes == 0


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_a_few_tokens_are_multiplied_without_decoding(mode: Any, pair: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, plain = pair

    def fail(*_: Any) -> None:
        raise AssertionError("a matrix was unpacked")

    monkeypatch.setattr(FixedLength, "unpack", fail)
    monkeypatch.setattr(FormInMemory, "decode", fail)
    with mode():
        assert near(model(FEW[:, :1]), plain(FEW[:, :1]))
        assert near(model(FEW), plain(FEW))
        x = plain.embedding(FEW[0])
        assert torch.equal(model.embedding(FEW[0]), x)
        assert near(torch.mm(x, model.up.weight.t()), torch.mm(x, plain.up.weight.t()))
        assert near(x @ model.up.weight.t(), x @ plain.up.weight.t())


def test_many_tokens_get_the_plain_bits(pair: tuple[Any, Any]) -> None:
    model, plain = pair
    with torch.inference_mode():
        assert torch.equal(model(MANY), plain(MANY))
    assert torch.equal(model.up.weight[3:5].clone(), plain.up.weight[3:5])
    assert torch.equal(model.up.weight.float(), plain.up.weight.float())


def test_gradients_are_the_plain_ones(pair: tuple[Any, Any]) -> None:
    model, plain = pair
    for either in pair:
        either(MANY).float().square().mean().backward()
    assert torch.equal(model.up.weight.grad, plain.up.weight.grad)
    assert torch.equal(model.embedding.weight.grad, plain.embedding.weight.grad)


def test_products_of_other_dtypes_are_not_the_forms(pair: tuple[Any, Any]) -> None:
    model, plain = copy.deepcopy(pair[0]).float(), copy.deepcopy(pair[1]).float()
    with torch.no_grad():
        assert torch.equal(model(FEW), plain(FEW))


def test_new_weights_take_the_form_again(pair: tuple[Any, Any]) -> None:
    model, plain = pair
    state = {name: 3 * tensor for name, tensor in plain.state_dict().items()}
    model.load_state_dict(state)
    plain.load_state_dict(state)
    assert same_state(model, plain)
    assert isinstance(model.up.weight.store.frames, FormInMemory)
    with torch.no_grad():
        model.up.weight[2].mul_(2)
        plain.up.weight[2].mul_(2)
        assert near(model(FEW) / 64, plain(FEW) / 64)
    assert same_state(model, plain)


def test_it_is_copied_pickled_and_saved_with_its_bits(pair: tuple[Any, Any], tmp_path: Path) -> None:
    model, plain = pair
    assert copy.deepcopy(model).up.weight.store.frames is model.up.weight.store.frames
    file = io.BytesIO()
    torch.save(model, file)
    assert file.tell() < 0.8 * memory_report(model).dense_bytes
    restored = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
    assert isinstance(restored.up.weight.store.frames, FormInMemory)
    assert same_state(restored, plain)
    save_compressed(model, tmp_path / "model.safetensors")
    with modelcodec.open(tmp_path / "model.safetensors", framework="pt") as saved:
        assert all(torch.equal(saved.get_tensor(name), tensor) for name, tensor in plain.state_dict().items())


def test_frames_of_a_matrix_are_decoded_alone(pair: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelcodec.runtime.form_in_memory._FRAME_WORDS", 8 * 1024)
    model, plain = pair
    compressed = weights.compressed(plain.up.weight, "up.weight", model.up.weight.store.coding)
    assert compressed.store.frames.n_frames == 12
    assert torch.equal(compressed[17:40].clone(), plain.up.weight[17:40])
    assert torch.equal(weights.dense(compressed), plain.up.weight)


def test_rounded_weights_have_the_form_too(pair: tuple[Any, Any]) -> None:
    _, plain = pair
    model, rounded = copy.deepcopy(plain), copy.deepcopy(plain)
    compress_module(model, lossless=False, mantissa_bits=3, fixed_length=True)
    compress_module(rounded, lossless=False, mantissa_bits=3)
    assert isinstance(model.up.weight.store.frames, FormInMemory)
    assert same_state(model, rounded)


def test_an_index_out_of_range_is_an_error(pair: tuple[Any, Any]) -> None:
    with pytest.raises(IndexError, match="there are 60 rows"):
        pair[0].embedding(torch.tensor([60]))
