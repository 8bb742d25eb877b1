"""Separated attention against `nn.MultiheadAttention`, in every combination of its options."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from dnas.space.attention import SeparateAttention, separate_attention

QUERIES, KEYS, BATCH, SIZE, HEADS = 5, 7, 3, 48, 3


def attention(generator: torch.Generator, **named: bool | int | None) -> nn.MultiheadAttention:
    module = nn.MultiheadAttention(SIZE, HEADS, **named).double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 3)
    return module


def masks(kind: str, batched: bool, generator: torch.Generator) -> tuple[Tensor | None, Tensor | None]:
    """A padding mask and an attention mask; no query is left without keys."""
    batch = BATCH if batched else 1
    padding = torch.rand(batch, KEYS, generator=generator) > 0.6
    padding[:, 0] = False
    padding = padding if batched else padding[0]
    forbidden = torch.rand(QUERIES, KEYS, generator=generator) > 0.6
    forbidden[:, 0] = False
    added = torch.randn(batch * HEADS, QUERIES, KEYS, generator=generator, dtype=torch.float64)
    return {"none": (None, None), "bool": (padding, forbidden), "float": (None, added[0]), "heads": (None, added)}[kind]


@pytest.mark.parametrize("kind", ["none", "bool", "float", "heads"])
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
@torch.no_grad()
def test_it_computes_what_torch_computes(
    kind: str, batched: bool, batch_first: bool, generator: torch.Generator
) -> None:
    for bias, extra, zero, narrow in itertools.product((True, False), repeat=4):
        size = 20 if narrow else SIZE
        module = attention(
            generator, bias=bias, add_bias_kv=extra, add_zero_attn=zero, kdim=size, vdim=size, batch_first=batch_first
        )
        query, key, value = (
            torch.randn(BATCH, length, width, generator=generator, dtype=torch.float64)
            for length, width in ((QUERIES, SIZE), (KEYS, size), (KEYS, size))
        )
        if not batched:
            query, key, value = query[0], key[0], value[0]
        elif not batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        padding, mask = masks(kind, batched, generator)
        separated = separate_attention(module)
        assert isinstance(separated, SeparateAttention)
        for weights, average in ((True, True), (True, False), (False, True)):
            named = {"need_weights": weights, "average_attn_weights": average}
            wanted = module(query, key, value, padding, attn_mask=mask, **named)
            found = separated(query, key, value, padding, attn_mask=mask, **named)
            torch.testing.assert_close(found[0], wanted[0], rtol=1e-12, atol=1e-12)
            assert wanted[0].abs().amin() > 0
            if weights:
                torch.testing.assert_close(found[1], wanted[1], rtol=1e-12, atol=1e-12)
            else:
                assert found[1] is None


def test_the_model_is_left_as_it_was(generator: torch.Generator) -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    assert separate_attention(model) is model
    model.add_module("attention", attention(generator))
    separated = separate_attention(model)
    assert type(model.attention) is nn.MultiheadAttention
    assert isinstance(separated.attention, SeparateAttention)
    with pytest.raises(ValueError, match="is_causal"):
        separated.attention(*[torch.zeros(1, 2, SIZE).double()] * 3, is_causal=True)


def test_gradients_and_dropout(generator: torch.Generator) -> None:
    module = attention(generator, batch_first=True)
    module.in_proj_weight.requires_grad_(False)
    separated = separate_attention(module)
    assert not separated.q.weight.requires_grad
    assert separated.out_proj.weight.requires_grad
    x = torch.randn(BATCH, QUERIES, SIZE, generator=generator, dtype=torch.float64)
    for found in (module, separated):
        found(x, x, x)[0].square().sum().backward()
    torch.testing.assert_close(separated.out_proj.weight.grad, module.out_proj.weight.grad)
    separated.train().dropout = 1.0
    torch.testing.assert_close(separated(x, x, x)[0], separated.out_proj.bias.expand(BATCH, QUERIES, -1))
