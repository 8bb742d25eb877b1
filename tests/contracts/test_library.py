"""The library without its command: a user's own model, loop and loaders."""

import re
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import dnas
from dnas.search.budget import BudgetError
from tests.networks import Residual, example


class Batches:
    """A loader of the user's: an `epoch` that is a number does not make it one of the project's."""

    epoch = 3

    def __init__(self, batches: list[tuple[Tensor, Tensor]]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> object:
        return iter(self.batches)


def toy(count: int = 96, seed: int = 0) -> TensorDataset:
    """Images whose brightest channel is their class, of three."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(3, (count,), generator=generator)
    x = torch.randn(count, 3, 8, 8, generator=generator)
    x[torch.arange(count), y] += 1.5
    return TensorDataset(x, y)


def loader(shuffle: bool = True, seed: int = 0) -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(toy(seed=seed), batch_size=16, shuffle=shuffle, drop_last=shuffle)


def test_the_readmes_program_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a model, images and a loss of the reader's."""
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    model = Residual()
    (x,) = example_inputs = example(model)
    save_file(model.state_dict(), "weights.safetensors")
    names: dict[str, Any] = {
        "model": model, "example_inputs": example_inputs, "images": x, "criterion": nn.CrossEntropyLoss(),
        "batches": [(x, torch.arange(4))] * 3,
    }  # fmt: skip
    exec(program, names)
    found, small, supernet = names["architecture"], names["small"], names["supernet"]
    assert found.cost("bops", relative=True) <= 0.05
    assert all(torch.isfinite(p.grad).all() for p in supernet.choice_parameters())
    session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        assert abs(logits - small.eval()(x).numpy()).max() < 1e-5 * max(abs(logits).max(), 1)


def test_costs(generator: torch.Generator) -> None:
    model = Residual()
    space = dnas.build_space(model, example(model), (2, 4, 8), (2, 4, 8), (0.5, 1.0))
    supernet, budget = dnas.Supernet(model, space), dnas.Budget(bops=0.05)
    architecture = dnas.select(supernet.scores(), space, budget)
    assert isinstance(architecture.cost("bops"), int)
    assert architecture.cost("bops", relative=True) == pytest.approx(
        architecture.cost("bops") / dnas.uniform_architecture(space, 8, 8).cost("bops")
    )
    cost = supernet.cost("bops")
    cost.backward()
    (logits,) = supernet.choice_parameters()
    assert cost.shape == ()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    grads = supernet.choices.rows(logits.grad).values()
    assert all(float(grad[-1]) > 0 > float(grad[0]) for grad in grads)


def test_search_and_retrain_with_plain_loaders(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Residual()
    space = dnas.build_space(model, example(model), (2, 8), (2, 8), (0.5, 1.0))
    supernet, budget = dnas.Supernet(model, space), dnas.Budget(bops=0.1)
    config = dnas.SearchConfig(searcher="gumbel", epochs=2, score_images=64, score_rounds=1)
    scores, history = dnas.search(supernet, budget, loader(), loader(seed=1), loader(False, 2), model, config)
    assert len(history) == 2
    assert history[-1]["choice_loss"] > 0
    architecture = dnas.select(scores, space, budget)
    assert architecture.cost("bops", relative=True) <= 0.1
    small = dnas.realise(supernet, architecture)
    # the last batch is smaller than the others
    history = dnas.retrain(
        small, DataLoader(toy(), 20, shuffle=True), loader(False, 2), config=dnas.RetrainConfig(epochs=2)
    )
    assert len(history) == 2
    assert not small.training


def test_a_search_resumes_with_plain_loaders(tmp_path: Path) -> None:
    """Also with a shuffling DataLoader, which draws from torch's global generator."""

    def run(epochs: list[int], checkpoint: Path) -> tuple[dnas.Scores, dnas.Supernet]:
        for count in epochs:
            torch.manual_seed(0)
            model = Residual()
            space = dnas.build_space(model, example(model), (2, 8), (2, 8), (0.5, 1.0))
            supernet = dnas.Supernet(model, space)
            stop = Stop(count)
            config = dnas.SearchConfig(searcher="gumbel", epochs=3, score_images=32, score_rounds=1)
            torch.rand(count)  # wherever the generator stands
            try:
                scores, _ = dnas.search(
                    supernet, dnas.Budget(bops=0.1), loader(), loader(seed=1), stop, None, config, checkpoint=checkpoint
                )
            except InterruptedError:
                continue
        return scores, supernet

    class Stop(Batches):
        """Validation batches that fail in an epoch."""

        def __init__(self, epochs: int) -> None:
            super().__init__(list(loader(False, 2)))
            self.left = epochs

        def __iter__(self) -> object:
            self.left -= 1
            if self.left < 0:
                raise InterruptedError
            return super().__iter__()

    whole = run([9], tmp_path / "whole.ckpt")
    parts = run([1, 1, 9], tmp_path / "parts.ckpt")
    again = run([9], tmp_path / "parts.ckpt")  # finished before: scored again
    for scores, supernet in (parts, again):
        assert scores.values == whole[0].values
        for (name, one), other in zip(whole[1].named_parameters(), supernet.parameters(), strict=True):
            assert torch.equal(one, other), name


def test_not_a_loader() -> None:
    model = Residual()
    space = dnas.build_space(model, example(model), (2, 8), (8,), (1.0,))
    with pytest.raises(TypeError, match="__len__"):
        dnas.search(dnas.Supernet(model, space), dnas.Budget(bops=0.9), iter([]), loader(), loader())


@pytest.mark.parametrize("searcher", ["gumbel", "neighbourhood", "binas"])
def test_a_checkpoint_of_another_search_is_refused(searcher: str, tmp_path: Path) -> None:
    model = Residual()
    space = dnas.build_space(model, example(model), (2, 8), (2, 8), (0.5, 1.0))
    config = dnas.SearchConfig(
        searcher, epochs=1, score_images=32, score_rounds=1, rounds=2, pool=50, judged=10, train="always"
    )
    others = [(replace(config, epochs=2), 0.1, "search.epochs is 1 there, 2 here")]
    if searcher != "binas":  # whose supernet serves every budget
        others.append((config, 0.2, "budget.bops is 0.1 there, 0.2 here"))
    for own, bops, words in [(config, 0.1, ""), (config, 0.1, ""), *others]:
        supernet = dnas.Supernet(model, space)
        with pytest.raises(ValueError, match=words) if words else nullcontext():
            dnas.search(
                supernet, dnas.Budget(bops=bops), loader(), loader(seed=1), loader(False, 2), None, own,
                checkpoint=tmp_path / "search.ckpt",
            )  # fmt: skip


def test_a_budget_that_no_legal_pairs_meet_is_refused_before_training() -> None:
    model = Residual()
    target = dnas.Target(pairs=((4, 8), (8, 4)))
    space = dnas.build_space(model, example(model), (4, 8), (4, 8), (1.0,), target=target)
    supernet, budget = dnas.Supernet(model, space), dnas.Budget(bops=0.3)
    before = {name: value.clone() for name, value in supernet.state_dict().items() if isinstance(value, torch.Tensor)}
    with pytest.raises(BudgetError):
        dnas.search(supernet, budget, loader(), loader(seed=1), loader(False, 2))
    assert all(torch.equal(value, supernet.state_dict()[name]) for name, value in before.items())
