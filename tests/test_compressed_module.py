"""A module whose weights are compressed behaves as before, to the bit, whatever is done with it."""

from __future__ import annotations

import copy
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import safetensors.torch  # noqa: E402

import modelcodec  # noqa: E402
from modelcodec import frame  # noqa: E402
from modelcodec.errors import BadRecipe, CorruptFile  # noqa: E402
from modelcodec.runtime import compressed_weight as weights  # noqa: E402
from modelcodec.runtime.compressed_module import compress_module, memory_report, save_compressed  # noqa: E402
from modelcodec.runtime.frames_in_memory import FramesInMemory  # noqa: E402
from modelcodec.runtime.rounding import MANTISSA_BITS, round_mantissa  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


class Zoo(torch.nn.Module):
    """One of each kind of module that holds weights in a way of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(700, 64)
        self.linear = torch.nn.Linear(64, 128)
        self.conv = torch.nn.Conv1d(128, 64, 3, padding=1)
        self.lstm = torch.nn.LSTM(64, 64, batch_first=True)
        self.attention = torch.nn.MultiheadAttention(64, 4, batch_first=True)
        self.experts = torch.nn.Parameter(torch.randn(4, 64, 96) * 0.05)
        self.head = torch.nn.Linear(64, 700, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("positions", torch.arange(50))

    def forward(self, tokens: Any) -> Any:
        x = self.linear(self.embedding(tokens))
        x = self.conv(x.transpose(1, 2)).transpose(1, 2)
        x = self.lstm(x)[0]
        x = self.attention(x, x, x)[0]
        routed = x @ self.experts[2] + torch.einsum("bld,edf->blf", x, self.experts)
        return self.head(x) + routed.sum(-1, keepdim=True)


TOKENS = torch.randint(700, (2, 11), generator=torch.Generator().manual_seed(0))


def pair(dtype: Any = torch.bfloat16, **options: Any) -> tuple[Zoo, Zoo]:
    """The same model compressed and plain."""
    torch.manual_seed(0)
    model = Zoo().to(dtype)
    plain = copy.deepcopy(model)
    compress_module(model, **options)
    return model, plain


def same_state(model: Any, plain: Any) -> bool:
    mine, theirs = model.state_dict(), plain.state_dict()
    return list(mine) == list(theirs) and all(type(t) is torch.Tensor and torch.equal(t, theirs[name]) for name, t in mine.items())


@pytest.mark.parametrize("level", [1, 5, 9])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_outputs_and_gradients_are_the_same(dtype: Any, level: int) -> None:
    model, plain = pair(dtype, level=level)
    with torch.no_grad():
        assert torch.equal(model(TOKENS), plain(TOKENS))
    with torch.inference_mode():
        assert torch.equal(model.eval()(TOKENS), plain.eval()(TOKENS))
    for one in (model.train(), plain.train()):
        one(TOKENS).float().square().mean().backward()
    for (name, mine), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine.grad, theirs.grad), name


def test_under_autocast() -> None:
    model, plain = pair(torch.float32)
    for one in (model, plain):
        with torch.autocast("cpu", torch.bfloat16):
            one(TOKENS).float().square().mean().backward()
    assert all(torch.equal(mine.grad, theirs.grad) for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True))


def test_autograd_keeps_no_decoded_weight() -> None:
    layer = torch.nn.Sequential(torch.nn.Linear(256, 256), torch.nn.Tanh(), torch.nn.Linear(256, 256)).bfloat16()
    compress_module(layer)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        layer(torch.randn(2, 256, dtype=torch.bfloat16))
    assert any(weights.is_compressed(tensor) for tensor in saved)
    assert all(weights.is_compressed(tensor) or tensor.numel() <= 512 for tensor in saved)


def test_memory_is_reported() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(512, 512), torch.nn.LayerNorm(512)).bfloat16()
    torch.nn.init.normal_(model[0].weight, std=0.02)
    dense = sum(p.nbytes for p in model.parameters())
    report = compress_module(model)
    assert report == memory_report(model)
    assert (report.dense_bytes, report.buffer_bytes, report.n_compressed, report.n_dense) == (dense, 2 * 512 * 512, 1, 3)
    assert report.kept_bytes < 0.68 * dense
    assert "1 parameters compressed, 3 kept dense" in str(report)


def test_tied_weights_stay_tied() -> None:
    model, _ = pair()
    assert model.head.weight is model.embedding.weight
    state = model.state_dict()
    assert state["head.weight"].data_ptr() == state["embedding.weight"].data_ptr()
    assert copy.deepcopy(model).head.weight.store is not model.head.weight.store
    copied = copy.deepcopy(model)
    assert copied.head.weight is copied.embedding.weight


def test_state_dicts_are_dense_and_go_back() -> None:
    model, plain = pair()
    assert same_state(model, plain)
    assert same_state(model.conv, plain.conv)
    other = Zoo().bfloat16()
    compress_module(other)
    other.load_state_dict(plain.state_dict())
    assert weights.is_compressed(other.linear.weight)
    assert same_state(other, plain)
    assert weights.is_compressed(model.state_dict(keep_vars=True)["linear.weight"])


def test_moves_and_casts_stay_compressed() -> None:
    model, plain = pair()
    assert same_state(model.float(), plain.float())
    assert weights.is_compressed(model.linear.weight)
    assert model.linear.weight.store.frames.spec.dtype.name == "F32"
    assert torch.equal(model(TOKENS), plain(TOKENS))
    assert same_state(model.to("cpu", torch.bfloat16), plain.to("cpu", torch.bfloat16))
    assert {parameter.device.type for parameter in model.to("meta").parameters()} == {"meta"}


def test_torch_save_keeps_frames() -> None:
    model, plain = pair()
    file = io.BytesIO()
    torch.save(model, file)
    assert len(file.getvalue()) < 0.8 * sum(p.nbytes for p in plain.parameters())
    file.seek(0)
    back = torch.load(file, weights_only=False)
    assert isinstance(back.linear.weight, torch.nn.Parameter)
    assert back.head.weight is back.embedding.weight
    assert torch.equal(back(TOKENS), plain(TOKENS))
    assert same_state(back, plain)


def test_copies_share_frames_until_one_is_written() -> None:
    model, plain = pair()
    copied = copy.deepcopy(model)
    assert copied.linear.weight.store.frames is model.linear.weight.store.frames
    with torch.no_grad():
        copied.linear.weight.mul_(2)
    assert same_state(model, plain)
    assert torch.equal(copied.linear.weight, 2 * plain.linear.weight)


def test_operations_in_place() -> None:
    model, plain = pair()
    with torch.no_grad():
        for one in (model, plain):
            one.linear.weight[3:5].fill_(7)
            one.linear.weight.t()[9].add_(one.linear.weight[:, 2])
            one.conv.weight.data.copy_(one.conv.weight.flip(0))
            one.experts.clamp_(-0.01, 0.01)
            one.lstm.weight_hh_l0.data = one.lstm.weight_hh_l0.data * 3
            assert one.linear.weight.mul_(2) is one.linear.weight
    assert same_state(model, plain)


def test_an_ordinary_optimizer_works() -> None:
    model, plain = pair(torch.float32)
    for one in (model, plain):
        optimizer = torch.optim.AdamW(one.parameters(), lr=1e-2)
        for _ in range(2):
            one(TOKENS).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert same_state(model, plain)


def test_hooks_and_tags_stay() -> None:
    linear = torch.nn.Linear(128, 128)
    seen = []
    linear.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    linear.weight.tag = "kept"
    compress_module(linear)
    linear(torch.zeros(1, 128))
    assert seen == [(1, 128)]
    assert linear.weight.tag == "kept"
    assert not linear.requires_grad_(False).weight.requires_grad


def test_threads_share_the_frames_of_a_weight() -> None:
    torch.set_num_threads(3)
    linear = torch.nn.Linear(2048, 3000).bfloat16()
    plain = copy.deepcopy(linear)
    compress_module(linear)
    assert len(linear.weight.store.frames.frames) == 12
    assert torch.equal(weights.dense(linear.weight), plain.weight)
    store = linear.weight.store
    store.frames = replace(store.frames, frames=(*store.frames.frames[:7], store.frames.frames[0], *store.frames.frames[8:]))
    with pytest.raises(CorruptFile, match="frame 7"):
        weights.dense(linear.weight)


def test_a_view_decodes_only_its_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    experts = torch.nn.Parameter(torch.randn(8, 512, 512, dtype=torch.bfloat16) * 0.02)
    module = torch.nn.Module()
    module.experts = experts
    plain = experts.detach()
    compress_module(module)
    module.embedding = torch.nn.Embedding(4096, 512, dtype=torch.bfloat16)
    table = module.embedding.weight.detach()
    compress_module(module)
    numbers: list[int] = []
    decode_run = frame.decode_run
    monkeypatch.setattr(frame, "decode_run", lambda rows, width: numbers.extend(rows[:, 2]) or decode_run(rows, width))
    x = torch.randn(3, 512, dtype=torch.bfloat16)
    assert torch.equal(x @ module.experts[5], x @ plain[5])
    assert numbers == [2], "experts of half a frame each"
    numbers.clear()
    tokens = torch.tensor([[3000, 5], [3000, 4095]])
    assert torch.equal(module.embedding(tokens), torch.nn.functional.embedding(tokens, table))
    assert numbers == [0, 2, 3]
    with pytest.raises(IndexError, match="out of range"):
        module.embedding(torch.tensor([4096]))


def test_saving_writes_the_frames_that_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, plain = pair()
    encoded = []
    encode = FramesInMemory.encode.__func__
    monkeypatch.setattr(FramesInMemory, "encode", classmethod(lambda cls, spec, *rest: encoded.append(spec.name) or encode(cls, spec, *rest)))
    save_compressed(model, tmp_path / "model.safetensors")
    assert not {name for name, p in model.named_parameters() if weights.is_compressed(p)} & set(encoded)
    loaded = modelcodec.load_file(tmp_path / "model.safetensors", "pt")
    state = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())
    modelcodec.decompress(tmp_path / "model.safetensors", tmp_path / "plain.safetensors")
    assert (tmp_path / "plain.safetensors").read_bytes() == safetensors.torch.save(state, {"format": "pt"})


@pytest.mark.parametrize("level", [1, 9])
def test_what_is_saved_is_a_sound_container(tmp_path: Path, level: int) -> None:
    model, plain = pair(torch.float32, level=level)
    model.double()
    model.linear.half()
    model.head.bias = torch.nn.Parameter(torch.zeros(()))
    save_compressed(model, tmp_path / "model.safetensors", {})
    modelcodec.verify(tmp_path / "model.safetensors")
    loaded = modelcodec.load_file(tmp_path / "model.safetensors", "pt")
    assert torch.equal(loaded["linear.weight"], plain.linear.weight.double().half())
    assert torch.equal(loaded["head.weight"], plain.head.weight.double())
    assert loaded["head.bias"].shape == ()


def test_damaged_memory_is_noticed() -> None:
    model, _ = pair()
    store = model.linear.weight.store
    data = bytearray(store.frames.frames[0].data)
    data[-100] ^= 4
    damaged = frame.EncodedFrame(bytes(data), store.frames.frames[0].digest)
    store.frames = replace(store.frames, frames=(damaged, *store.frames.frames[1:]))
    with pytest.raises(CorruptFile, match=r"linear\.weight, frame 0 in memory"):
        model(TOKENS)


@pytest.mark.parametrize(("bits", "share"), [(0, 0.26), (1, 0.33), (3, 0.45), (6, 0.63)])
def test_fewer_mantissa_bits(bits: int, share: float) -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(512, 512).bfloat16()
    torch.nn.init.normal_(linear.weight, std=0.02)
    plain = linear.weight.detach().clone()
    report = compress_module(linear, lossless=False, mantissa_bits=bits)
    assert report.kept_bytes < share * report.dense_bytes
    error = (weights.dense(linear.weight).double() - plain.double()).abs() / plain.double().abs().clamp(min=1e-30)
    assert 0 < error.max() <= 2.0 ** -(bits + 1)


@pytest.mark.parametrize("dtype", MANTISSA_BITS)
def test_rounding_is_to_nearest_even(dtype: str) -> None:
    most = MANTISSA_BITS[dtype]
    width = 4 if dtype == "F32" else 2
    infinity = ((1 << (8 * width - 1 - most)) - 1) << most
    random = np.random.default_rng(0).integers(0, infinity - (1 << most), 4000)
    edges = np.array([0, 1, infinity - 1, infinity, infinity + 1, infinity | 1 << (most - 1)])
    x = np.concatenate([random, edges, np.concatenate([random, edges]) | 1 << (8 * width - 1)]).astype(f"<u{width}")
    for bits in {0, 1, 3, most - 1}:
        rounded = round_mantissa(x, dtype, bits)
        assert rounded.dtype == x.dtype
        special = (x & np.array(infinity, x.dtype)) == infinity
        assert (rounded[special] == x[special]).all()
        drop = most - bits
        # Bit patterns of floats of one sign are in the order of their values, and evenly spaced as far as the mantissa is concerned.
        down = x[~special].astype(np.int64) >> drop
        rest = x[~special].astype(np.int64) - (down << drop)
        up = (rest > 1 << (drop - 1)) | ((rest == 1 << (drop - 1)) & (down & 1 == 1))
        expected = down + up << drop
        overflows = (expected & infinity) == infinity
        assert (rounded[~special] == np.where(overflows, down << drop, expected)).all()


def test_what_makes_no_sense_is_refused() -> None:
    linear = torch.nn.Linear(128, 128)
    for options in ({"mantissa_bits": 3}, {"lossless": False}, {"lossless": False, "mantissa_bits": 23}, {"level": 2}):
        with pytest.raises(BadRecipe):
            compress_module(linear, **options)
    linear.weight.register_hook(lambda gradient: gradient)
    with pytest.raises(BadRecipe, match="weight has hooks"):
        compress_module(linear)
    for state in ({"a": 1}, {"__modelcodec__.a": torch.zeros(1)}):
        module = torch.nn.Module()
        module.register_state_dict_post_hook(lambda module, found, prefix, metadata, state=state: found.update(state))
        with pytest.raises(BadRecipe):
            save_compressed(module, "never written")


def test_what_would_not_shrink_stays_dense() -> None:
    module = torch.nn.Module()
    module.noise = torch.nn.Parameter(torch.randint(256, (64, 512), dtype=torch.uint8), requires_grad=False)
    module.complex = torch.nn.Parameter(torch.zeros(64, 512, dtype=torch.complex64))
    module.small = torch.nn.Parameter(torch.zeros(8))
    module.far = torch.nn.Parameter(torch.zeros(512, 512, device="meta"))
    assert compress_module(module).n_compressed == 0
    module.noise.data.fill_(3)
    assert compress_module(module).n_compressed == 1
