"""Promise: `mcodec report` writes one page that is whole, needs nothing else, and that no name can break; the same page for the same file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from rows import FORMAT_ROWS, FormatRow
from safetensors.numpy import load_file, save_file

import modelcodec
from modelcodec.cli.layers import Distortion, Row
from modelcodec.cli.main import main
from modelcodec.fitted import Fitted, FittedTensor, Weights
from modelcodec.recipe import parse_plan
from modelcodec.report import TensorReport
from modelcodec.types import Loss

VOID = {"meta", "wbr", "br", "hr", "img", "input", "link"}
PLAN = parse_plan("palette(indices:rans)")
RNG = np.random.default_rng(0)
HOSTILE = '"><script>alert(1)</script>&amp;`|\n]]>\u202e\x1b[2J'


class Page(HTMLParser):
    """A page's elements, checked to be balanced, with the text that a reader sees."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text.append(data)

    def names(self) -> set[str]:
        return {tag for tag, _ in self.tags}

    def said(self) -> str:
        return "".join(self.text)


def _page(path: Path, *options: str) -> Page:
    """The page about a file, written beside it; checked for what every page must keep."""
    assert main(["report", str(path), "-q", "-f", "-o", f"{path}.html", *options]) == 0
    html = Path(f"{path}.html").read_text(encoding="utf-8")
    found = Page(html)
    assert not found.names() & {"script", "link", "img", "iframe", "object", "a", "form"}
    assert not re.search(r"https?://|url\(|@import", html)
    assert not any(key.startswith("on") or key in ("src", "href") for _, attributes in found.tags for key in attributes)
    identities = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(identities) == len(set(identities))
    for tag, attributes in found.tags:
        if tag == "svg" and attributes.get("role") == "img":
            assert {attributes["aria-labelledby"], attributes["aria-describedby"]} <= set(identities)
    return found


def rounded(weights: Mapping[str, Weights]) -> Fitted:
    """Matrices to quarters."""
    fitted = {}
    for name, tensor in weights.items():
        if len(tensor.spec.shape) > 1:
            x = tensor.words.view(np.float32)
            values = np.round(x * 4) / np.float32(4)
            error = (x - values).astype(np.float64)
            loss = Loss(float(np.abs(error).max()), float(error @ error) / float(x @ x))
            fitted[name] = FittedTensor(values.view(np.uint32), PLAN, loss)
    return Fitted(fitted)


@pytest.fixture
def lossy(tmp_path: Path) -> tuple[Path, Path]:
    """A file with a lossy tensor in each of three layers, and its original."""
    tensors = {f"net.layers.{k}.weight": RNG.standard_normal((40, 30)).astype(np.float32) for k in (0, 2, 10)}
    tensors |= {f"net.layers.{k}.norm": np.ones(30, np.float32) for k in (0, 2, 10)}
    save_file(tensors, tmp_path / "m.safetensors")
    modelcodec.compress(tmp_path / "m.safetensors", tmp_path / "m.mcodec", fit=rounded)
    return tmp_path / "m.mcodec", tmp_path / "m.safetensors"


def test_a_lossy_file(lossy: tuple[Path, Path]) -> None:
    said = _page(lossy[0]).said()
    assert "3 of 6 tensors lossy" in said
    assert "Errors as measured when the file was compressed." in said
    assert "cosine" not in said
    assert said.index("net.layers.2") < said.index("net.layers.10")
    for tensor in modelcodec.inspect(lossy[0]).tensors:
        if tensor.loss:
            assert f"{tensor.bits_per_weight:.3f}{tensor.loss.snr_db:.2f} dB{tensor.loss.max_error:.3g}" in said


def test_measured_against_the_original(lossy: tuple[Path, Path]) -> None:
    found = _page(lossy[0], "--original", str(lossy[1]))
    assert "3 of 6 tensors differ" in found.said()
    assert sum(1 for tag, attributes in found.tags if tag == "svg" and attributes["class"] == "spark") == 3
    assert {"plot rate-distortion", "plot histogram"} <= {attributes["class"] for tag, attributes in found.tags if tag == "svg"}
    for row in modelcodec.compare(lossy[1], lossy[0]).tensors:
        if row.n_different:
            assert f"{row.snr_db:.2f} dB{row.max_error:.3g}{row.rmse:.3g}{row.cosine:.6f}" in found.said()


def test_the_whole_in_the_rate_distortion_plane(lossy: tuple[Path, Path]) -> None:
    given, exact = modelcodec.load_file(lossy[0]), load_file(lossy[1])
    error = sum(float(((exact[name] - given[name]).astype(np.float64) ** 2).sum()) for name in exact if "weight" in name)
    energy = sum(float((exact[name].astype(np.float64) ** 2).sum()) for name in exact if "weight" in name)
    coded = sum(tensor.n_bytes_coded for tensor in modelcodec.inspect(lossy[0]).tensors if tensor.loss)
    expected = f"{8 * coded / 3600:.3f} bits a weight, {10 * np.log10(energy / error):.1f} dB"
    assert expected in _page(lossy[0]).said()
    assert expected in _page(lossy[0], "--original", str(lossy[1])).said()


def test_a_lossless_file_beside_its_original_and_another(tmp_path: Path, lossy: tuple[Path, Path]) -> None:
    modelcodec.compress(lossy[1], tmp_path / "exact.mcodec")
    assert "6 tensors compared, all with the same bits." in _page(tmp_path / "exact.mcodec", "--original", str(lossy[1])).said()
    save_file({"net.layers.0.norm": np.ones(30, np.float32) * 2, HOSTILE: np.ones(2)}, tmp_path / "other.safetensors")
    found = _page(tmp_path / "exact.mcodec", "--original", str(tmp_path / "other.safetensors"))
    assert "lossless" in found.said()
    assert "1 of 1 tensors differ" in found.said()
    assert "Only in the original: " in found.said()


def test_hostile_names(tmp_path: Path) -> None:
    folder = tmp_path / "a<b>&\"'`|"
    folder.mkdir()
    weights = RNG.standard_normal((20, 20)).astype(np.float32)
    save_file({HOSTILE: weights, f"{HOSTILE}.0.w": weights, "9" * 5000 + ".w": weights, "_1" * 5000: weights, "a = b": weights}, folder / "m.safetensors")
    modelcodec.compress(folder / "m.safetensors", folder / "m`|<i>.mcodec", fit=rounded)
    found = _page(folder / "m`|<i>.mcodec")
    assert "i" in found.names(), "the bars"
    assert not any("\u202e" in said or "\x1b" in said for said in found.text)
    assert '"><script>alert(1)</script>&amp;`|\\n]]>\\u202e\\x1b[2J' in found.said()
    assert "| m\\`\\|\\<i\\>.mcodec |" in found.said()


def test_lossy_tensors_of_a_torch_file(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    large, small = torch.randn(100, 300), torch.randn(3, 5)
    torch.save({"bias": torch.randn(7), "small": small, "large": large, "tied": large, "turned": torch.randn(8, 6).T}, tmp_path / "m.pt")
    modelcodec.compress(tmp_path / "m.pt", fit=rounded)
    for options in ((), ("--original", str(tmp_path / "m.pt"))):
        said = _page(tmp_path / "m.pt.mcodec", *options).said()
        assert "2 of 4 tensors lossy" in said
        assert "2 tensors with errors" in said
        assert "large and 1 more on its storage" in said


@pytest.mark.parametrize("row", FORMAT_ROWS, ids=lambda row: row.name)
def test_every_source_format(row: FormatRow, tmp_path: Path) -> None:
    if row.name.startswith("torch"):
        pytest.importorskip("torch")
    name, files = row.make()
    for file, data in files.items():
        (tmp_path / file).write_bytes(data)
    modelcodec.compress(tmp_path / name, tmp_path / "c.mcodec")
    said = _page(tmp_path / "c.mcodec", "--original", str(tmp_path / name)).said() if row.name != "bytes" else _page(tmp_path / "c.mcodec").said()
    assert f"· {row.name} · lossless" in said


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    modelcodec.compress(tmp_path / "empty")
    said = _page(tmp_path / "empty.mcodec").said()
    assert "· bytes · lossless" in said
    assert "load_file" not in said


def test_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "model"
    (source / "sub").mkdir(parents=True)
    for name in ("one.safetensors", "sub/two.safetensors"):
        save_file({"layers.0.w": RNG.standard_normal((30, 20)).astype(np.float32)}, source / name)
    (source / "config.json").write_text("{}")
    modelcodec.compress(source, tmp_path / "small")
    said = _page(tmp_path / "small").said()
    assert "2 files" in said
    assert "sub/two.safetensors" in said
    assert "sub/layers.0" in said
    assert str(tmp_path) not in said
    monkeypatch.chdir(tmp_path / "small")
    assert main(["report", "--markdown", "."]) == 0
    assert "mcodec decompress small\n" in capsys.readouterr().out
    assert main(["report", "--markdown", str(source)]) == 5, "nothing in it is compressed"


def test_a_thousand_tensors_stay_small(tmp_path: Path) -> None:
    names = [f"model.layers.{k}.mlp.experts.{j}.down_proj.weight" for k in range(60) for j in range(17)]
    save_file({name: RNG.standard_normal((8, 8)).astype(np.float32) for name in names}, tmp_path / "m.safetensors")
    modelcodec.compress(tmp_path / "m.safetensors", tmp_path / "m.mcodec", fit=rounded)
    found = _page(tmp_path / "m.mcodec", "--original", str(tmp_path / "m.safetensors"))
    assert (tmp_path / "m.mcodec.html").stat().st_size < 1_000_000
    assert sum(1 for tag, _ in found.tags if tag == "details") == 60 + 3
    assert not any("open" in attributes for tag, attributes in found.tags if tag == "details")


def test_the_same_file_gives_the_same_page(lossy: tuple[Path, Path], tmp_path: Path) -> None:
    pages = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        copy = tmp_path / folder / "m.mcodec"
        copy.write_bytes(lossy[0].read_bytes())
        _page(copy, "--original", str(lossy[1]))
        pages.append((tmp_path / folder / "m.mcodec.html").read_bytes())
    assert pages[0] == pages[1]


def test_errors_beyond_any_measure(tmp_path: Path) -> None:
    exact = {"a": np.array([1e-300, 2], np.float64), "b": np.array([np.inf, np.nan, 1]), "c": np.zeros(4), "d": np.array([5e-324, 0])}
    other = {"a": np.array([1e308, 2], np.float64), "b": np.array([1.0, 2, 3]), "c": np.ones(4), "d": np.array([1e308, 1])}
    for name, tensors in (("a", exact), ("b", other)):
        save_file(tensors, tmp_path / name)
    modelcodec.compress(tmp_path / "b", tmp_path / "b.mcodec")
    assert "4 of 4 tensors differ" in _page(tmp_path / "b.mcodec", "--original", str(tmp_path / "a")).said()


@pytest.mark.parametrize(
    ("name", "layer", "label"),
    [
        ("model.layers.12.self_attn.q_proj.weight", "model.layers.12", "self_attn.q_proj.weight"),
        ("encoder/layer_3/ffn/linear/bias", "encoder/layer_3", "ffn/linear/bias"),
        ("layer1.0.bn1.weight", "layer1.0", "bn1.weight"),
        ("model.norm.weight", "model.norm", "weight"),
        ("lm_head", "lm_head", "lm_head"),
        ("blk.0", "blk.0", "blk.0"),
        ("h.0.w = h.1.w = e", "h.0", "w and 2 more on its storage"),
    ],
)
def test_layers_of_names(name: str, layer: str, label: str) -> None:
    row = Row("", TensorReport(name, "F32", (1,), "raw", 4, 4, 1))
    assert (row.layer, row.label) == (layer, label)


def test_the_floor_of_lossy_tensors_is_the_gaussian_bound() -> None:
    assert Distortion(0.1, 20 * np.log10(8), 1.0).gaussian_bits == pytest.approx(3)
    assert Distortion(0.1, -3.0, 1.0).gaussian_bits == 0
    assert Distortion(0.0, np.inf, 0.0).gaussian_bits is None


def test_markdown(lossy: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--markdown", str(lossy[0])]) == 0
    card = capsys.readouterr().out
    assert card.startswith("## Compressed with modelcodec\n\n")
    assert "3 of 6 tensors are lossy" in card
    assert 'tensors = modelcodec.load_file("m.mcodec")' in card
    assert card in _page(lossy[0]).said() + "\n"
    assert main(["report", "--markdown", "-o", "x.html", str(lossy[0])]) == 2


def test_destinations(lossy: tuple[Path, Path], capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(["report", "-q", str(lossy[0])]) == 0
    page = lossy[0].with_name("m.mcodec.html")
    assert main(["report", "-q", "-o", "-", str(lossy[0])]) == 0
    assert capsysbinary.readouterr().out == page.read_bytes()
    assert main(["report", "-q", str(lossy[0])]) == 74, "it is there already"
    assert main(["report", "-q", "-f", str(lossy[0])]) == 0
    assert main(["report", "-q", str(lossy[1])]) == 5, "not a compressed file"
    assert main(["report", "-q", "-"]) == 2, "standard input has no places to read at"
