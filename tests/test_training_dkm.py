"""DKM: weights become few values, learned with the network, stored as a codebook."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

from digits import Residual, accuracy, check_method, digits_task, perceptron  # noqa: E402

import modelcodec  # noqa: E402
from modelcodec.errors import BadRecipe  # noqa: E402
from modelcodec.fit import KMeans  # noqa: E402
from modelcodec.fit.rules import Ruled  # noqa: E402
from modelcodec.fit.training import parse_method  # noqa: E402
from modelcodec.fit.training.dkm import DKM, Clusters, _Attend  # noqa: E402
from modelcodec.fit.training.loop import train  # noqa: E402
from modelcodec.fit.training.method import Trained  # noqa: E402
from modelcodec.fit.training.plain import Plain  # noqa: E402
from modelcodec.formats import container  # noqa: E402


@pytest.mark.parametrize("dimension", [1, 3])
def test_gradients_are_those_of_the_attention_however_it_is_cut(dimension: int) -> None:
    torch.manual_seed(0)
    vectors, centroids = torch.randn(20, dimension, dtype=torch.float64, requires_grad=True), torch.randn(4, dimension, dtype=torch.float64)
    temperature = torch.tensor(0.5, dtype=torch.float64)
    for most in (7, 100):
        assert torch.autograd.gradcheck(lambda x, most=most: _Attend.apply(x, centroids, temperature, most)[0], vectors)
    shares = torch.softmax(-torch.cdist(vectors, centroids) ** 2 / temperature, 1)
    means = shares.T @ vectors / shares.sum(0)[:, None]
    mix, moved = _Attend.apply(vectors, centroids, temperature, 7)
    assert torch.allclose(moved, means)
    assert torch.allclose(mix, shares @ means)


def test_trains_resumes_and_is_stored_as_few_values(tmp_path: Path) -> None:
    trained, path = check_method(DKM(4), digits_task(Residual, epochs=2), tmp_path)
    archive = container.read(memoryview(path.read_bytes()), "dkm")
    for name, tensor in trained.model.state_dict().items():
        entry = next((entry for entry in archive.tensors if entry.spec.name == name), None)
        if tensor.dim() > 1 and tensor.numel() >= 256:
            assert tensor.unique().numel() <= 4
            assert entry is not None
            assert str(archive.frame_head(entry, 0).root).startswith("codebook")
            assert 8 * entry.size < 3.2 * tensor.numel()


def test_vectors_are_few(tmp_path: Path) -> None:
    trained, path = check_method(DKM(32, dimension=2), digits_task(), tmp_path)
    weight = trained.model.state_dict()["1.weight"]
    assert len(weight.reshape(-1, 2).unique(dim=0)) <= 32
    archive = container.read(memoryview(path.read_bytes()), "dkm")
    entry = next(entry for entry in archive.tensors if entry.spec.name == "1.weight")
    assert 8 * entry.size < 3.2 * weight.numel()  # 2.5 and the codebook


def test_ends_better_than_kmeans_of_the_same_network(tmp_path: Path) -> None:
    start = train(digits_task(epochs=6, rate=1e-2), Plain()).model.state_dict()

    def begun() -> torch.nn.Module:
        model = perceptron()
        model.load_state_dict(start)
        return model

    def stored(trained: Trained) -> tuple[float, int]:
        n_bytes = trained.save(tmp_path / "file", overwrite=True).n_bytes_coded
        model = perceptron()
        model.load_state_dict(modelcodec.load_file(tmp_path / "file", "pt"))
        return accuracy(model), n_bytes

    clustered, size = stored(Trained(begun(), Ruled(usual=KMeans(2))))
    learned, learned_size = stored(train(digits_task(begun, epochs=4), DKM(2)))
    assert learned > clustered + 0.02
    assert learned_size < 1.05 * size


def test_tied_weights_stay_tied_and_masks_stay() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Embedding(40, 16), torch.nn.Linear(16, 40, bias=False))
    with torch.no_grad():
        model[0].weight[torch.rand(40, 16) < 0.5] = 0
    model[1].weight = model[0].weight
    zero = model[0].weight.detach() == 0
    training = DKM(4).begin(model)
    assert len(list(model.parameters())) == 1
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(5):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(torch.arange(40)), torch.arange(40)).backward()
        optimizer.step()
    plain = training.finish().model
    assert plain[0].weight is plain[1].weight
    assert plain[0].weight.unique().numel() <= 5
    assert bool((plain[0].weight[zero] == 0).all())


def test_memory_bounds_the_attention_not_the_result() -> None:
    torch.manual_seed(0)
    weight = torch.randn(50, 40, requires_grad=True)
    whole, cut = (Clusters(weight, 16, 1, 0.5, memory) for memory in (1 << 20, 1 << 10))
    assert cut.most == 16
    assert torch.allclose(whole(weight), cut(weight), atol=1e-3)
    with torch.no_grad():
        assert whole(weight).unique().numel() == 16


def test_bad_options_are_refused() -> None:
    for text in ("dkm(0)", "dkm(16, dimension=0)", "dkm(16, temperature=0)", "dkm(16, memory=0)"):
        with pytest.raises(BadRecipe, match="dkm"):
            parse_method(text)
    assert parse_method("dkm(16, dimension=2, exact=conv1*)") == DKM(16, 2, exact="conv1*")
    with pytest.raises(BadRecipe, match="no weights"):
        DKM(16).begin(torch.nn.Sequential(torch.nn.ReLU()))
    zeros = torch.nn.Linear(20, 20)
    torch.nn.init.zeros_(zeros.weight)
    with pytest.raises(BadRecipe, match="nothing but zeros"):
        DKM(16).begin(zeros)


def test_looking_at_clusters_while_resuming_does_not_move_them(tmp_path: Path) -> None:
    check_method(parse_method("dkm(8) | coded_size(1e-5)"), digits_task(epochs=2), tmp_path)
