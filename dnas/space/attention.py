"""`nn.MultiheadAttention` as linear layers that can be quantised: its projections are parameters, not layers."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quant.modules import copied


class SeparateAttention(nn.Module):
    """What an `nn.MultiheadAttention` computes, up to rounding, with the layers `q`, `k`, `v` and `out_proj`.

    It shares the output projection with the module that it is made of; the others are copies of its slices.
    """

    in_proj_bias = None
    """Tells `nn.TransformerEncoderLayer` that there is no fused path."""
    in_proj_weight = None
    _qkv_same_embed_dim = False

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.embed_dim, self.num_heads, self.head_dim = attention.embed_dim, attention.num_heads, attention.head_dim
        self.kdim, self.vdim = attention.kdim, attention.vdim
        self.dropout, self.batch_first = attention.dropout, attention.batch_first
        self.add_zero_attn = attention.add_zero_attn
        if attention._qkv_same_embed_dim:
            weights: Any = attention.in_proj_weight.chunk(3)
            trained = attention.in_proj_weight.requires_grad
        else:
            weights = (attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight)
            trained = attention.q_proj_weight.requires_grad
        biases: Any = (None,) * 3 if attention.in_proj_bias is None else attention.in_proj_bias.chunk(3)
        layers = [_linear(weight, bias, trained) for weight, bias in zip(weights, biases, strict=True)]
        self.q, self.k, self.v = layers
        out = attention.out_proj
        self.out_proj = nn.Linear(out.in_features, out.out_features, out.bias is not None, device="meta")
        self.out_proj.weight, self.out_proj.bias = out.weight, out.bias
        self.bias_k, self.bias_v = attention.bias_k, attention.bias_v
        self.train(attention.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As `nn.MultiheadAttention.forward`.

        Raises:
            ValueError: `is_causal` without the mask that it describes.
        """
        if is_causal and attn_mask is None:
            raise ValueError("is_causal is a hint about attn_mask, which is None; pass the mask, too")
        batched, heads, size = query.dim() == 3, self.num_heads, self.head_dim
        q, k, v = self.q(query), self.k(key), self.v(value)
        if not batched:
            q, k, v = q.unsqueeze(0), k.unsqueeze(0), v.unsqueeze(0)
        elif not self.batch_first:
            q, k, v = q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1)
        batch = q.shape[0]
        if self.bias_k is not None and self.bias_v is not None:
            k = torch.cat([k, self.bias_k.expand(batch, 1, -1)], 1)
            v = torch.cat([v, self.bias_v.expand(batch, 1, -1)], 1)
        if self.add_zero_attn:
            k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
        q, k, v = (x.view(batch, x.shape[1], heads, size).transpose(1, 2) for x in (q, k, v))
        mask = self._mask(key_padding_mask, attn_mask, q, k, batched)
        weights = None
        if need_weights:
            scores = (q * size**-0.5) @ k.transpose(-2, -1)
            weights = torch.softmax(scores if mask is None else scores + mask, -1)
            weights = F.dropout(weights, self.dropout, self.training)
            y = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            y = F.scaled_dot_product_attention(q, k, v, mask, self.dropout if self.training else 0.0)
        y = y.transpose(1, 2).reshape(batch, -1, self.embed_dim)
        if not batched:
            y, weights = y.squeeze(0), None if weights is None else weights.squeeze(0)
        elif not self.batch_first:
            y = y.transpose(0, 1)
        return self.out_proj(y), weights

    def _mask(
        self, padding: Tensor | None, attention: Tensor | None, q: Tensor, k: Tensor, batched: bool
    ) -> Tensor | None:
        """Both masks as what is added to the scores: shape (batch, heads or 1, queries or 1, keys)."""
        found = None
        for mask, is_padding in ((padding, True), (attention, False)):
            if mask is None:
                continue
            if mask.dtype == torch.bool:
                mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill(mask, float("-inf"))
            added = k.shape[2] - mask.shape[-1]
            mask = F.pad(mask.to(q.dtype), (0, added)) if added else mask.to(q.dtype)
            if is_padding:
                mask = (mask if batched else mask.unsqueeze(0))[:, None, None, :]
            elif mask.dim() == 3:
                mask = mask.reshape(-1, self.num_heads, *mask.shape[1:])
            found = mask if found is None else found + mask
        return found


def _linear(weight: Tensor, bias: Tensor | None, trained: bool) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach().clone(), trained)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone(), bias.requires_grad)
    return layer


def _is_attention(module: nn.Module) -> bool:
    own = type(module).forward is nn.MultiheadAttention.forward
    return isinstance(module, nn.MultiheadAttention) and own


def separate_attention(model: nn.Module) -> nn.Module:
    """The model with `SeparateAttention` in place of every `nn.MultiheadAttention`: a copy, or itself if it has none.

    Args:
        model: left as it was; subclasses of `nn.MultiheadAttention` with a forward of their own are, too.
    """
    if not any(_is_attention(module) for module in model.modules()):
        return model
    model = copied(model)
    if _is_attention(model):
        return SeparateAttention(model)  # type: ignore[arg-type]
    made: dict[nn.Module, nn.Module] = {}
    for module in list(model.modules()):
        for name, child in list(module._modules.items()):
            if child is not None and _is_attention(child):
                if child not in made:
                    made[child] = SeparateAttention(child)  # type: ignore[arg-type]
                setattr(module, name, made[child])
    return model
