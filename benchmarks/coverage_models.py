"""Vision models of Hugging Face `transformers`, built from their configurations with random weights: written by others."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor, nn


@dataclass(frozen=True)
class Entry:
    """One model: its class, what of the configuration differs from the standard one, and the side of its images.

    variant: what it is, for the table. family: "conv" where nearly all multiplications are convolutions, else "token".
    """

    model: str
    config: str
    variant: str
    family: str = "conv"
    options: Mapping[str, Any] = field(default_factory=dict)
    side: int = 224

    def build(self) -> nn.Module:
        """The model with random weights and random statistics, in evaluation mode."""
        torch.manual_seed(0)
        config = getattr(transformers, self.config)(**{"num_labels": 1000, **self.options})
        model: nn.Module = getattr(transformers, self.model)(config)
        return randomise(model, self.images(8, seed=3))

    def images(self, count: int, seed: int = 1) -> Tensor:
        """Smooth random images, normalised: shape (count, 3, side, side)."""
        generator = torch.Generator().manual_seed(seed)
        coarse = torch.randn(count, 3, 14, 14, generator=generator)
        fine = torch.randn(count, 3, self.side, self.side, generator=generator)
        return nn.functional.interpolate(coarse, self.side, mode="bilinear") + 0.3 * fine


@torch.no_grad()
def randomise(model: nn.Module, images: Tensor) -> nn.Module:
    """Weights that keep the variance, per-channel parameters that differ, and batch statistics near those of images."""
    generator = torch.Generator().manual_seed(2)

    def uniform(tensor: Tensor, low: float, high: float) -> Tensor:
        return torch.rand(tensor.shape, generator=generator) * (high - low) + low

    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for module in model.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear", generator=generator)
        for name, parameter in module.named_parameters(recurse=False):
            if name == "bias":
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
            elif parameter.dim() == 1 and parameter.numel() > 1:  # weights of normalisations, scales of branches
                parameter.copy_(uniform(parameter, 0.3, 1.2))
    momentum = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    model(images)
    for norm, before in zip(norms, momentum, strict=True):
        norm.momentum = before
        norm.running_mean += 0.2 * norm.running_var.sqrt() * torch.randn(norm.running_mean.shape, generator=generator)
        norm.running_var *= uniform(norm.running_var, 0.7, 1.4)
    return model.eval()


def _conv(model: str, variant: str, **options: Any) -> Entry:
    return Entry(f"{model}ForImageClassification", f"{model}Config", variant, "conv", options)


def _token(model: str, variant: str, **options: Any) -> Entry:
    return Entry(f"{model}ForImageClassification", f"{model}Config", variant, "token", options)


TINY = {"hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3, "intermediate_size": 768}

MODELS: Mapping[str, Entry] = {
    "resnet": _conv("ResNet", "ResNet-50"),
    "regnet": _conv("RegNet", "RegNetY-4GF"),
    "mobilenet_v1": _conv("MobileNetV1", "1.0"),
    "mobilenet_v2": _conv("MobileNetV2", "1.0"),
    "efficientnet": _conv(
        "EfficientNet", "B0", width_coefficient=1.0, depth_coefficient=1.0, image_size=224, hidden_dim=1280
    ),
    "convnext": _conv("ConvNext", "tiny"),
    "convnextv2": _conv("ConvNextV2", "tiny"),
    "bit": _conv("Bit", "BiT-50"),
    "hgnet_v2": _conv("HGNetV2", "standard"),
    "pp_lcnet": _conv("PPLCNet", "1.0"),
    "textnet": _conv("TextNet", "standard"),
    "poolformer": _conv("PoolFormer", "S12"),
    "focalnet": _conv("FocalNet", "tiny"),
    "swiftformer": _conv("SwiftFormer", "XS"),
    "levit": _token("Levit", "128S", depths=[2, 3, 4]),
    "mobilevit": _token("MobileViT", "S"),
    "mobilevitv2": _token("MobileViTV2", "1.0"),
    "vit": _token("ViT", "tiny/16", **TINY),
    "deit": _token("DeiT", "tiny/16", **TINY),
    "dinov2": _token("Dinov2", "small/14, 6 of 12 layers", hidden_size=384, num_attention_heads=6, num_hidden_layers=6),
    "swin": _token("Swin", "tiny"),
    "swinv2": _token("Swinv2", "tiny"),
    "segformer": _token("Segformer", "B0"),
    "segformer_segmentation": Entry("SegformerForSemanticSegmentation", "SegformerConfig", "B0, head", "token"),
    "cvt": _token("Cvt", "CvT-13"),
    "pvt": _token("Pvt", "tiny"),
    "pvt_v2": _token("PvtV2", "B0"),
    "hiera": _token("Hiera", "tiny"),
    "beit": _token("Beit", "tiny/16", **TINY, use_relative_position_bias=True),
}
