"""stories15M, a small language model, as suites use it: the network, text that it writes itself, its loss on text that it has not seen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

NAME = "stories15M_f32.safetensors"
BOS, LENGTH, HEADS = 1, 256, 6
"""The first token of a sequence, its most tokens, and heads of attention, as the model was trained."""

Kept = list[Tensor]
"""Keys and values of the tokens before, of one layer; nothing before the first."""


def _rotated(x: Tensor, start: int) -> Tensor:
    """Samples x tokens x width as samples x heads x tokens x size, neighbours turned by their place from `start` on."""
    n, length, width = x.shape
    size = width // HEADS
    angles = torch.outer(torch.arange(start, start + length), 10000.0 ** (-torch.arange(0, size, 2) / size))
    turned = torch.view_as_complex(x.view(n, length, HEADS, size // 2, 2)) * torch.polar(torch.ones_like(angles), angles)[:, None]
    return torch.view_as_real(turned).reshape(n, length, HEADS, size).transpose(1, 2)


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.wq, self.wk, self.wv, self.wo = (nn.Linear(width, width, bias=False) for _ in range(4))

    def forward(self, x: Tensor, kept: Kept | None) -> Tensor:
        start = kept[0].shape[2] if kept else 0
        queries, keys = _rotated(self.wq(x), start), _rotated(self.wk(x), start)
        values = self.wv(x).view(*x.shape[:2], HEADS, -1).transpose(1, 2)
        if kept:
            keys, values = torch.cat([kept[0], keys], 2), torch.cat([kept[1], values], 2)
        if kept is not None:
            kept[:] = keys, values
        y = functional.scaled_dot_product_attention(queries, keys, values, is_causal=start == 0)
        gives: Tensor = self.wo(y.transpose(1, 2).reshape(x.shape))
        return gives


class FeedForward(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w1, self.w3 = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.w2 = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gives: Tensor = self.w2(functional.silu(self.w1(x)) * self.w3(x))
        return gives


class Layer(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.attention_norm, self.attention = nn.RMSNorm(width, 1e-5), Attention(width)
        self.ffn_norm, self.feed_forward = nn.RMSNorm(width, 1e-5), FeedForward(width, hidden)

    def forward(self, x: Tensor, kept: Kept | None) -> Tensor:
        x = x + self.attention(self.attention_norm(x), kept)
        gives: Tensor = x + self.feed_forward(self.ffn_norm(x))
        return gives


class Stories(nn.Module):
    """Tokens in, logits out; the head is the table of embeddings. Names are those of llama2.c's files."""

    def __init__(self, vocabulary: int, width: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(Layer(width, hidden) for _ in range(layers))
        self.norm = nn.RMSNorm(width, 1e-5)
        self.output = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor, kept: Sequence[Kept] | None = None) -> Tensor:
        x = self.tok_embeddings(tokens)
        for number, layer in enumerate(self.layers):
            x = layer(x, None if kept is None else kept[number])
        logits: Tensor = self.output(self.norm(x))
        return logits


def net_of(state: Mapping[str, Tensor]) -> Stories:
    (vocabulary, width), hidden = state["tok_embeddings.weight"].shape, len(state["layers.0.feed_forward.w1.weight"])
    with torch.device("meta"):
        net = Stories(vocabulary, width, hidden, sum(name.endswith(".wq.weight") for name in state))
    net.load_state_dict({**state, "output.weight": state["tok_embeddings.weight"]}, assign=True)
    net.output.weight = net.tok_embeddings.weight
    return net.eval().requires_grad_(False)


@torch.no_grad()
def written(net: Stories, n: int, seed: int = 0) -> Tensor:
    """n sequences of tokens as the model itself goes on from BOS: calibration that needs no data."""
    generator = torch.Generator().manual_seed(seed)
    tokens, kept = torch.full((n, 1), BOS), [Kept() for _ in net.layers]
    while tokens.shape[1] < LENGTH:
        shares = torch.softmax(net(tokens[:, -1:], kept)[:, -1], -1)
        tokens = torch.cat([tokens, torch.multinomial(shares, 1, generator=generator)], 1)
    return tokens


def unseen(folder: Path) -> list[Tensor]:
    """The test text as tokens, a story each. Raises ImportError."""
    from sentencepiece import SentencePieceProcessor

    tokenizer = SentencePieceProcessor(str(folder / "llama_tokenizer.model"))
    stories = (story.strip() for story in (folder / "tinystories_300k.txt").read_text(encoding="utf-8").split("<|endoftext|>"))
    return [torch.tensor([BOS, *tokenizer.encode(story)][:LENGTH]) for story in stories if len(story) > 200]


@torch.no_grad()
def loss(net: Stories, stories: Sequence[Tensor]) -> float:
    """Nats a token."""
    total = sum(float(functional.cross_entropy(net(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten(), reduction="sum")) for batch in _batches(stories))
    return total / sum(len(story) - 1 for story in stories)


def _batches(stories: Sequence[Tensor]) -> Iterator[Tensor]:
    """Stories of one length together, four at most."""
    by_length: dict[int, list[Tensor]] = {}
    for story in stories:
        by_length.setdefault(len(story), []).append(story)
    for alike in by_length.values():
        for start in range(0, len(alike), 4):
            yield torch.stack(alike[start : start + 4])


@torch.no_grad()
def input_squares(net: Stories, sequences: Tensor) -> dict[str, Tensor]:
    """Means of the squares of what each matrix is multiplied by, by its name: what llama.cpp calls an importance matrix. The table's is that of the head."""
    sums: dict[str, Tensor] = {}
    hooks = []
    for name, layer in net.named_modules():
        if isinstance(layer, nn.Linear):

            def add(layer: nn.Module, given: tuple[Tensor, ...], name: str = name.replace("output", "tok_embeddings")) -> None:
                squares = given[0].flatten(0, -2).square()
                sums[f"{name}.weight"] = sums.get(f"{name}.weight", torch.zeros(1)) + squares.sum(0)

            hooks.append(layer.register_forward_pre_hook(add))
    for batch in sequences.split(4):
        net(batch)
    for hook in hooks:
        hook.remove()
    return {name: found / sequences.numel() for name, found in sums.items()}
