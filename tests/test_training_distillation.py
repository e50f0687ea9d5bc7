"""Distillation: a penalty that joins with any method, and teaches a compressed network what the original answered."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

from digits import Residual, accuracy, check_method, digits, digits_task, perceptron  # noqa: E402

from modelcodec.errors import BadRecipe  # noqa: E402
from modelcodec.fit.training import parse_method  # noqa: E402
from modelcodec.fit.training.distillation import Distill, divergence, logits_of, original_of  # noqa: E402
from modelcodec.fit.training.learned_step import LearnedStep  # noqa: E402


def test_it_joins_with_another_method(tmp_path: Path) -> None:
    trained, _ = check_method(LearnedStep(4) | Distill(), digits_task(), tmp_path)
    assert not trained.model._forward_hooks
    assert trained.fit is not None


@pytest.mark.parametrize("method", [LearnedStep(2) | Distill(), Distill() | LearnedStep(2)])
def test_the_teacher_is_the_original_on_either_side(method: Any) -> None:
    model = perceptron()
    x, _ = digits()
    with torch.no_grad():
        wanted = model(x[:50])
    training = method.begin(model)
    answers = training.model(x[:50])
    assert torch.allclose(training.penalty(), divergence(answers, wanted, 4.0))
    with pytest.raises(BadRecipe, match="has not been run"):
        training.penalty()


def test_answers_come_back_without_labels() -> None:
    torch.manual_seed(0)
    model = perceptron()
    x, y = digits()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x[:1500]), y[:1500]).backward()
        optimizer.step()
    known = accuracy(model)
    training = (LearnedStep(2) | Distill()).begin(model)
    before = accuracy(training.model)
    training.model.train()
    optimizer = torch.optim.Adam(training.model.parameters(), 3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        training.model(x[:1500])
        training.penalty().backward()
        optimizer.step()
    after = accuracy(training.finish().model)
    assert before < known - 0.05
    assert after > known - 0.03


def test_the_original_is_read_below_all_parametrizations_and_left_alone() -> None:
    model = Residual()
    first = {name: x.clone() for name, x in model.state_dict().items()}
    x, _ = digits()
    training = LearnedStep(2).begin(model)
    copied = original_of(training.model)
    plain = Residual()
    plain.load_state_dict(first)
    with torch.no_grad():
        assert torch.equal(copied(x[:20]), plain.eval()(x[:20]))
        assert not torch.equal(training.model.eval()(x[:20]), copied(x[:20]))
    assert not any(p.requires_grad for p in copied.parameters())
    assert all(p.requires_grad for p in training.model.parameters())


def test_runs_without_gradients_do_not_count() -> None:
    training = Distill().begin(perceptron())
    x, _ = digits()
    answers = training.model(x[:10])
    with torch.no_grad():
        training.model(x[10:40])
    assert torch.isfinite(training.penalty())
    assert answers.shape[0] == 10


def test_answers_of_several_kinds() -> None:
    x = torch.randn(2, 5)
    for answers in (x, (x, None), {"logits": x}, SimpleNamespace(logits=x), SimpleNamespace(logits=[x])):
        assert logits_of(answers) is x
    for wrong in (torch.randn(3), {"loss": x}, "text"):
        with pytest.raises(BadRecipe, match="no logits"):
            logits_of(wrong)


def test_divergence_is_per_answer_and_over_classes() -> None:
    torch.manual_seed(0)
    given, wanted = torch.randn(6, 10), torch.randn(6, 10)
    found = divergence(given, wanted, 2.0)
    log_given, log_wanted = (torch.log_softmax(x / 2, 1) for x in (given, wanted))
    assert torch.allclose(found, 4 * torch.nn.functional.kl_div(log_given, log_wanted, log_target=True, reduction="batchmean"))
    assert float(divergence(wanted, wanted, 3.0)) == pytest.approx(0, abs=1e-6)
    of_pixels = divergence(given.view(2, 3, 10).permute(0, 2, 1)[..., None], wanted.view(2, 3, 10).permute(0, 2, 1)[..., None], 2.0)
    assert torch.allclose(of_pixels, found)


def test_a_users_own_parametrizations_are_part_of_the_original() -> None:
    net = perceptron()
    torch.nn.utils.parametrizations.orthogonal(net[1])
    training = (LearnedStep(3) | Distill(1.0)).begin(net)
    x, _ = digits()
    teacher = original_of(training.model)
    assert torch.allclose(teacher[1].weight @ teacher[1].weight.T, torch.eye(48), atol=1e-5)
    assert torch.isfinite(teacher(x)).all()


def test_there_is_no_original_behind_a_method_that_replaces_weights() -> None:
    with pytest.raises(BadRecipe, match="put it behind"):
        parse_method("pranc(100) | distill(1)").begin(perceptron())
