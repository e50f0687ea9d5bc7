"""Promise: a module whose compressed weights live on a GPU gives the plain module's bits, decoded there. Without a GPU, Triton's interpreter stands for one."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from triton_device import DEVICE, torch

from modelcodec import frame
from modelcodec.errors import CorruptFile
from modelcodec.runtime import compressed_weight as weights
from modelcodec.runtime import gpu, gpu_weights
from modelcodec.runtime.compressed_module import compress_module, memory_report
from modelcodec.runtime.fixed_length import FixedLength
from modelcodec.runtime.gpu import StagedFrames
from modelcodec.runtime.training import UpdatesInBackward
from modelcodec.stages import rans

nn = torch.nn
FRAME_WORDS = 512
"""Small frames with the lanes of large ones: the interpreter takes long for each word."""
WIDTH = 16


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(gpu, "KINDS", frozenset({"cuda", DEVICE}))
    monkeypatch.setattr(rans, "VECTOR_WORDS", 1)
    monkeypatch.setattr(rans, "TWO_GROUPS", 1 << 62)
    monkeypatch.setattr("modelcodec.runtime.frames_in_memory.full_frame_words", lambda dtype, row_words=0: FRAME_WORDS)
    monkeypatch.setattr("modelcodec.runtime.compressed_module.LEAST_BYTES", 1 << 10)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Frames of each launch."""
    numbers: list[int] = []
    decode = StagedFrames.decode
    monkeypatch.setattr(StagedFrames, "decode", lambda self, out: numbers.append(self.n_on_gpu) or decode(self, out))
    return numbers


class Block(nn.Module):  # type: ignore[misc, name-defined]
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Any) -> Any:
        return x + self.down(self.up(x).tanh())


class Net(nn.Module):  # type: ignore[misc, name-defined]
    """Two layers between an embedding and its own transpose."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(4 * WIDTH, WIDTH)
        self.layers = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Any) -> Any:
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


TOKENS = torch.tensor([[3, 17, 3], [0, 1, 31]], device=DEVICE)


def pair(dtype: Any = torch.bfloat16, **options: Any) -> tuple[Any, Any]:
    """The same model compressed and plain."""
    torch.manual_seed(0)
    plain = Net().to(DEVICE, dtype)
    for parameter in plain.parameters():
        parameter.data.uniform_(0.1, 0.5).mul_(torch.randn_like(parameter).sign())  # few exponents, so that short frames shrink
    model = copy.deepcopy(plain)
    compress_module(model, **options)
    return model, plain


@pytest.mark.parametrize(("dtype", "level"), [(torch.float32, 5), (torch.bfloat16, 9)])
def test_outputs_are_the_same(dtype: Any, level: int) -> None:
    model, plain = pair(dtype, level=level)
    with torch.inference_mode():
        assert torch.equal(model(TOKENS), plain(TOKENS))


def test_a_layer_is_decoded_in_one_launch(launched: list[int]) -> None:
    """Of the embedding the frames of the tokens alone, of the head all."""
    model, plain = pair()
    launched.clear()
    with torch.no_grad():
        assert torch.equal(model(TOKENS), plain(TOKENS))
    assert launched == [1, 2, 2, 2]
    launched.clear()
    assert torch.equal(weights.dense(model.layers[1].down.weight), plain.layers[1].down.weight)
    assert launched == [1], "outside of a forward pass a weight is decoded alone"


def test_a_graph_waits_for_no_tokens(launched: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    model, plain = pair()
    monkeypatch.setattr(weights, "is_capturing", lambda device: True)
    launched.clear()
    with torch.no_grad():
        assert torch.equal(model.embedding(TOKENS[:1, :1]), plain.embedding(TOKENS[:1, :1]))
    assert launched == [2], "all frames, for one token"


def test_a_written_weight_is_decoded_alone(launched: list[int]) -> None:
    model, plain = pair()
    with torch.no_grad():
        for one in (model, plain):
            one.layers[0].up.weight.mul_(2)
        launched.clear()
        assert torch.equal(model.layers[0].up.weight.t().clone(), 2 * plain.layers[0].up.weight.t() / 2)
    assert launched == [1, 1], "checked, then decoded"
    compress_module(model)
    assert model.layers[0].up.weight.store.layer is model.layers[0].down.weight.store.layer


def test_a_view_decodes_its_frames(launched: list[int]) -> None:
    """Experts in one parameter are not decoded with the rest of their layer."""
    layer = nn.Module()
    layer.experts = nn.Parameter(torch.empty(3, 32, 32, device=DEVICE).uniform_(0.1, 0.5))
    layer.up, layer.down = nn.Linear(32, 32, bias=False, device=DEVICE), nn.Linear(32, 32, bias=False, device=DEVICE)
    layer.forward = lambda x: layer.down(layer.up(x)) @ layer.experts[1]
    plain = layer.experts.detach().clone()
    model = nn.Sequential(layer)
    compress_module(model)
    x = torch.eye(32, device=DEVICE)
    launched.clear()
    with torch.no_grad():
        found = model(x)
        assert launched == [4, 2]
        assert torch.equal(found, (x @ weights.dense(layer.up.weight).t()) @ weights.dense(layer.down.weight).t() @ plain[1])


def test_a_scope_ends_where_forward_fails() -> None:
    model, plain = pair()
    with torch.no_grad(), pytest.raises(RuntimeError):
        model.layers[0](torch.zeros(1, 3, dtype=torch.bfloat16, device=DEVICE))
    assert not gpu_weights._open.scopes
    with torch.no_grad():
        assert torch.equal(model(TOKENS), plain(TOKENS))


def test_moves_copies_and_memory() -> None:
    model, plain = pair()
    report = memory_report(model)
    residents = {p.store.held for p in model.parameters() if weights.is_compressed(p)}
    assert len(residents) == 3
    assert report.gpu_bytes == sum(resident.n_bytes for resident in residents)
    assert f"{report.gpu_bytes:,} of GPUs" in str(report)
    assert report.buffer_bytes == 2 * 2 * 2 * WIDTH * WIDTH, "a layer"
    copied = copy.deepcopy(model)
    assert copied.layers[0].up.weight.store.held is model.layers[0].up.weight.store.held
    model.to("meta")
    assert all(torch.equal(a, b) for a, b in zip(copied.state_dict().values(), plain.state_dict().values(), strict=True))
    file = io.BytesIO()
    torch.save(copied, file)
    file.seek(0)
    back = torch.load(file, weights_only=False)
    compress_module(back)
    assert back.layers[1].up.weight.store.layer is back.layers[1].down.weight.store.layer
    with torch.no_grad():
        assert torch.equal(back(TOKENS), plain(TOKENS))


def test_training(launched: list[int]) -> None:
    """Weights go backward one at a time, and are encoded by the CPU."""
    model, plain = pair()
    updates = UpdatesInBackward(model.parameters(), torch.optim.SGD, lr=0.1)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    updates.backward(model(TOKENS).float().square().mean())
    plain(TOKENS).float().square().mean().backward()
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), plain.state_dict().values(), strict=True))
    assert launched


def test_frames_that_the_kernel_does_not_know_stay_with_the_cpu(launched: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_weights, "SMALL_BYTES", 0)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 64), nn.Linear(64, 64))).to(DEVICE)
    nn.init.constant_(model[0][1].weight, 0.5)
    plain = copy.deepcopy(model)
    compress_module(model)
    assert [parameter.store.resident() is not None for parameter in model.parameters() if weights.is_compressed(parameter)] == [True, False, True]
    launched.clear()
    x = torch.randn(2, 64, device=DEVICE)
    with torch.no_grad():
        assert torch.equal(model(x), plain(x))
    assert launched == [12]


def test_damaged_memory_is_noticed_when_it_is_staged() -> None:
    model, _ = pair()
    store = model.layers[0].up.weight.store
    data = bytearray(store.frames.frames[0].data)
    data[-100] ^= 4
    store.frames = replace(store.frames, frames=(frame.EncodedFrame(bytes(data), store.frames.frames[0].digest),))
    store.layer = store.held = None
    with pytest.raises(CorruptFile, match=r"layers\.0\.up\.weight, frame 0 in memory"):
        weights.dense(model.layers[0].up.weight)


# ---- the fixed-length form ------------------------------------------------------------------------------------------------------------


class Wide(nn.Module):  # type: ignore[misc, name-defined]
    """Rows wide enough for the form to pay; one matrix with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(6, 512)
        self.up, self.head = nn.Linear(512, 9), nn.Linear(512, 6, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Any) -> Any:
        x = self.embedding(tokens)
        return torch.cat([self.up(x), self.head(x)], -1)


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    monkeypatch.setattr("modelcodec.runtime.frames_in_memory.full_frame_words", lambda dtype, row_words=0: 1 << 16)
    torch.manual_seed(0)
    plain = Wide().to(DEVICE, torch.bfloat16)
    model = copy.deepcopy(plain)
    compress_module(model, fixed_length=True)
    return model, plain


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_a_few_tokens_are_multiplied_without_decoding(mode: Any, wide: tuple[Any, Any], launched: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    model, plain = wide
    unpacked = []
    monkeypatch.setattr(FixedLength, "unpack", lambda self, out: unpacked.append(out))
    launched.clear()
    for tokens in ([[2]], [[5, 0, 5]]):
        x = torch.tensor(tokens, device=DEVICE)
        with mode():
            found, expected = model(x), plain(x)
        assert found.shape == expected.shape
        assert torch.allclose(found, expected, rtol=2**-6, atol=2**-6)
    assert not launched
    assert not unpacked


def test_many_tokens_get_the_plain_bits(wide: tuple[Any, Any]) -> None:
    model, plain = wide
    x = torch.tensor([[1, 2, 3], [4, 5, 0]], device=DEVICE)
    with torch.inference_mode():
        assert torch.equal(model(x), plain(x))
    assert torch.equal(model.up.weight[3:5].clone(), plain.up.weight[3:5])


def test_the_form_is_made_anew_for_new_weights(wide: tuple[Any, Any]) -> None:
    model, plain = wide
    report = memory_report(model)
    assert report.gpu_bytes < 13 / 16 * sum(p.nbytes for name, p in plain.named_parameters() if "bias" not in name)
    state = {name: 2 * tensor for name, tensor in plain.state_dict().items()}
    model.load_state_dict(state)
    x = torch.tensor([[1]], device=DEVICE)
    with torch.inference_mode():
        found = model.up(model.embedding(x))
    plain.load_state_dict(state)
    assert torch.allclose(found, plain.up(plain.embedding(x)), rtol=2**-6, atol=2**-6)
    assert isinstance(model.up.weight.store.resident(), gpu_weights.FormedMatrix)
