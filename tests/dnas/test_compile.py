"""torch.compile: the same numbers, one graph for every sample and every width, no trace of the trial, decided once."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import Residual, example
from torch import Tensor

import dnas
import dnas.engine
from dnas.board import Board
from dnas.checkpoint import load_state
from dnas.engine import COMPILE_FROM, Engine, EngineConfig, NumericsError, compiled_step
from dnas.loaders import LoaderBatches
from dnas.search.relax import Relaxation
from dnas.search.supernet import Supernet
from dnas.search.training import SearchConfig, SearchTraining
from dnas.supervised import SupervisedTraining
from quant.brevitas import LearnedStepQuant
from quant.kernel import kernel_available
from quant.mixture import mixture

pytestmark = [  # torch's own, about its compiler
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning"),
]
CPU = torch.device("cpu")
QUIET = EngineConfig(device="cpu", progress=False, compile="never")


@pytest.fixture(autouse=True)
def fresh_graphs() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def supernet(mode: str = "gumbel_hard", **options: Any) -> Supernet:
    torch.manual_seed(0)
    model = Residual()
    space = dnas.build_space(model, example(model), (2, 4, 8), (2, 4, 8), (0.5, 1.0), **options)
    return Supernet(model, space, Relaxation(mode=mode), seed=3).train()


def losses(net: Supernet, steps: int, x: Tensor) -> list[float]:
    """Steps of everything together under a budget."""
    optimiser, budget = torch.optim.SGD(net.parameters(), lr=0.01), dnas.Budget(bops=0.1)
    found = []
    for _ in range(steps):
        optimiser.zero_grad()
        loss = F.cross_entropy(net(x), torch.arange(len(x)) % 10) + budget.penalty(net)
        loss.backward()
        optimiser.step()
        found.append(float(loss.detach()))
    return found


@pytest.mark.parametrize(
    ("mode", "options"),
    [("gumbel_hard", {}), ("softmax", {}), ("gumbel_hard", {"granularity": "filter", "act_granularity": "filter"})],
)
def test_a_compiled_search_is_the_eager_one_and_never_recompiles(mode: str, options: dict[str, Any]) -> None:
    eager, x = supernet(mode, **options), example(Residual())[0]
    compiled = copy.deepcopy(eager)
    compiled.compile(dynamic=False)
    wanted = losses(eager, 6, x)
    found = losses(compiled, 1, x)
    with torch.compiler.set_stance("fail_on_recompile"):  # other samples, and steps that train no choice
        found += losses(compiled, 5, x)
        compiled.choices.logits.requires_grad_(False)
        compiled(x).sum().backward()
    assert found == pytest.approx(wanted, rel=1e-4)
    for (name, a), b in zip(eager.named_parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5, msg=name)


def test_steps_that_train_no_choice_leave_the_scores_alone_when_compiled() -> None:
    net, x = supernet(), example(Residual())[0]
    net.compile(dynamic=False)
    net.choices.logits.requires_grad_(False)
    net(x).sum().backward()
    assert net.choices.logits.grad is None
    assert float(net.choices.benefit_weight) == 0


def test_evaluation_is_eager_and_a_copy_is_not_compiled() -> None:
    net, x = supernet(), example(Residual())[0]
    before = net.eval()(x)
    net.compile(dynamic=False)
    calls = torch._dynamo.utils.counters["frames"]["total"]
    assert torch.equal(net(x), before)
    with torch.no_grad(), net.evaluate_as(net.most_probable()):
        assert torch.equal(net(x), before)
    assert torch.equal(copy.deepcopy(net).eval()(x), before)
    assert torch._dynamo.utils.counters["frames"]["total"] == calls


def loader(x: Tensor, count: int) -> LoaderBatches:
    return LoaderBatches([(x, torch.arange(len(x)) % 10)] * count, CPU)


def search_training(compile: str = "never", steps: int = 2) -> tuple[SearchTraining, Engine]:
    net, x = supernet(), example(Residual())[0]
    engine = Engine(EngineConfig(device="cpu", progress=False, compile=compile))
    config = SearchConfig(searcher="gumbel", epochs=2, warmup=0.0, distill=0.0)
    batches = loader(x, steps)
    return SearchTraining(
        net, dnas.Budget(bops=0.1), batches, batches, batches, None, config, engine, Board(None)
    ), engine


def fixed_training(engine: Engine, bits: int = 4) -> SupervisedTraining:
    net, x = supernet(), example(Residual())[0]
    model = dnas.realise(net, dnas.uniform_architecture(net.space, bits, bits))
    steps = [module.step for module in model.modules() if isinstance(module, LearnedStepQuant)]
    config = SearchConfig().optimiser
    return SupervisedTraining("retrain", model, loader(x, 2), loader(x, 1), 2, config, engine, steps)


def flat(state: Any) -> list[Any]:
    """Tensors and values of a nested state, in order."""
    if isinstance(state, dict):
        return [leaf for key in state for leaf in flat(state[key])]
    if isinstance(state, list | tuple):
        return [leaf for value in state for leaf in flat(value)]
    return [state]


class OddError(RuntimeError):
    """What a compiler says of a network that it does not take."""


@pytest.mark.parametrize("kind", ["search", "retrain"])
def test_a_network_that_does_not_compile_is_trained_as_if_nobody_had_tried(
    kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Even where the compiler fails after the step has begun."""

    def fit(setting: str) -> tuple[list[Any], bool]:
        engine = Engine(EngineConfig(device="cpu", progress=False, compile=setting))
        training: Any = search_training(setting)[0] if kind == "search" else fixed_training(engine)
        step, compiled = training.step, []
        monkeypatch.setattr(training.network, "compile", lambda **named: compiled.append(True))

        def fail(batch: Any, fraction: float) -> Any:
            numbers = step(batch, fraction)
            if compiled and compiled.pop():
                raise OddError("\n  a graph too odd\n")
            return numbers

        monkeypatch.setattr(training, "step", fail)
        engine.fit(training, tmp_path / setting, Board(None), 0)
        return flat(training.state()), load_state(tmp_path / setting)["compiled"]

    wanted, _ = fit("never")
    with pytest.warns(RuntimeWarning, match=r"a graph too odd.*engine\.compile=never"):
        found, compiled = fit("always")
    assert compiled is False
    for a, b in zip(wanted, found, strict=True):
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b


def test_a_diverging_step_is_no_fault_of_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    training, engine = search_training("always")
    monkeypatch.setattr(training.network, "compile", lambda **named: None)

    def diverge(batch: Any, fraction: float) -> Any:
        raise NumericsError("the gradient of a is not finite")

    monkeypatch.setattr(training, "step", diverge)
    with pytest.raises(NumericsError, match=r"epoch 0, step 0"):
        engine.fit(training, None, Board(None), 0)


@pytest.mark.parametrize("kind", ["search", "retrain"])
def test_what_was_compiled_ends_with_the_training(kind: str) -> None:
    engine = Engine(EngineConfig(device="cpu", progress=False, compile="always"))
    training: Any = search_training("always")[0] if kind == "search" else fixed_training(engine)
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    engine.fit(training, None, Board(None), 0)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > before
    assert training.network._compiled_call_impl is None


def test_a_compiled_retraining_is_the_eager_one() -> None:
    eager, compiled = fixed_training(Engine(QUIET)), fixed_training(Engine(QUIET))
    batch = next(iter(eager.batches(0)))
    eager.model.train(), compiled.model.train()
    wanted = [float(eager.step(batch, 0.5)["loss"]) for _ in range(4)]
    first = compiled_step(compiled, batch, 0.5)
    assert first is not None
    with torch.compiler.set_stance("fail_on_recompile"):
        found = [float(first["loss"]), *(float(compiled.step(batch, 0.5)["loss"]) for _ in range(3))]
    assert found == pytest.approx(wanted, rel=1e-4)


def test_networks_of_other_widths_are_compiled_once() -> None:
    """Widths are tensors in the graph: another architecture of the same shapes finds it on disk."""
    first, second = fixed_training(Engine(QUIET), bits=4), fixed_training(Engine(QUIET), bits=2)
    batch = next(iter(first.batches(0)))
    assert compiled_step(first, batch, 0.5) is not None
    torch._dynamo.utils.counters.clear()
    assert compiled_step(second, batch, 0.5) is not None
    counts = torch._dynamo.utils.counters["inductor"]
    assert counts["fxgraph_cache_hit"] >= 2
    assert counts["fxgraph_cache_miss"] == 0


@pytest.mark.parametrize(("setting", "steps", "wanted"), [
    ("auto", 2, False), ("auto", COMPILE_FROM // 2, True), ("always", 2, True), ("never", COMPILE_FROM, False),
])  # fmt: skip
def test_the_number_of_steps_decides(setting: str, steps: int, wanted: bool) -> None:
    training, engine = search_training(setting, steps)
    assert training.epochs * training.steps() == 2 * steps
    assert engine._compiles(training) is wanted


@pytest.mark.parametrize(("first", "second"), [("always", "never"), ("never", "always")])
def test_a_resumed_run_does_as_it_began(
    first: str, second: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def pretend(training: Any, batch: Any, fraction: float) -> Any:
        asked.append(training.name)
        return training.step(batch, fraction)

    monkeypatch.setattr(dnas.engine, "compiled_step", pretend)
    training, engine = search_training(first)
    training.epochs = 1
    engine.fit(training, tmp_path / "state", Board(None), 0)
    assert load_state(tmp_path / "state")["compiled"] is (first == "always")
    asked.clear()
    resumed, other = search_training(second)
    other.fit(resumed, tmp_path / "state", Board(None), 0)
    assert asked == (["search"] if first == "always" else [])


SHARED: dict[str, Callable[..., Tensor]] = {
    "used twice": lambda q, x, z: (q(x) + z).square().sum() + (q(x) * z.sin()).sum(),
    "added to a tensor": lambda q, x, z: ((q(x) + z) * torch.arange(40.0)).sum(),
    "two added": lambda q, x, z: ((q(x) + q(z)) * torch.arange(40.0)).sum(),
    "summed": lambda q, x, z: (q(x).sum(0, keepdim=True) * z[:1]).sum() + q(z).sum(),
}
"""Gradients that something else reads as well, or that are one number seen many times."""


@pytest.mark.parametrize("name", SHARED)
def test_gradients_of_a_compiled_quantiser_wherever_it_stands(name: str) -> None:
    def quantised(x: Tensor) -> Tensor:
        lower, upper = torch.tensor([0.0, 0.0]), torch.tensor([3.0, 15.0])
        return mixture(x, torch.tensor([1.0, 0.0]), torch.full((2,), 0.1), lower, upper, True, hard=True)

    def function(x: Tensor, z: Tensor) -> Tensor:
        return SHARED[name](quantised, x, z)

    assert kernel_available()
    x, z = torch.randn(2, 6, 40, generator=torch.Generator().manual_seed(0)).requires_grad_().unbind(0)
    wanted = torch.autograd.grad(function(x, z), (x, z))
    found = torch.autograd.grad(torch.compile(function)(x, z), (x, z))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_settings_that_do_not_exist() -> None:
    with pytest.raises(ValueError, match=r"engine\.compile.*'auto', 'always', 'never'"):
        EngineConfig(compile="yes")


def test_counting_is_honest() -> None:
    """The counters that the tests above rely on move when a graph is made."""
    function: Callable[[Tensor], Tensor] = torch.compile(lambda x: x * 2 + 1, backend="eager")
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    function(torch.ones(2))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before + 1
