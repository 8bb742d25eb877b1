"""Making a model from a configuration."""

import importlib
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from hydra.utils import to_absolute_path
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn

from dnas.models.checkpoint import load_weights
from dnas.models.errors import ModelError
from dnas.models.imports import make_working_directory_importable


@dataclass
class ModelConfig:
    """The keys of `model.*`; usable as an OmegaConf structured config.

    Not frozen: OmegaConf would make the node read-only, and Hydra could then override none of its keys.

    Attributes:
        name: shown wherever a result is printed.
        target: the import path of an `nn.Module` class or a function which returns one: "package.module:Name" or
            "package.module.Name"; modules in the working directory are found.
        arguments: passed by name. `in_channels`, `classes` and `image_shape` are added if the target has parameters of
            these names and the arguments do not give them.
        checkpoint: a state dict in a `.safetensors`, `.pt` or `.pth` file, or null for fresh weights; or a
            Hugging Face folder.
        checkpoint_skip: globs of keys of the checkpoint or the model which keep their initial values.
    """

    name: str = "model"
    target: str = MISSING
    arguments: dict[str, Any] = field(default_factory=dict)
    checkpoint: str | None = None
    checkpoint_skip: list[str] = field(default_factory=list)


def build_model(
    config: ModelConfig | DictConfig, in_channels: int, classes: int, image_shape: tuple[int, ...]
) -> nn.Module:
    """Imports and makes a model, tries it on two blank images, and loads its checkpoint.

    Args:
        config: the dataclass, or the `model` node of a Hydra configuration.
        in_channels: channels of the images.
        classes: the number of logits the model has to deliver.
        image_shape: (c, h, w) of one image.

    Returns:
        The model, on the CPU, in the training mode it was made in.

    Raises:
        ModelError: a wrong configuration, target, output or checkpoint. Errors inside the model's own code come
            through unchanged.
    """
    config = _model_config(config)
    make = import_target(config.target)
    offered = {"in_channels": in_channels, "classes": classes, "image_shape": tuple(image_shape)}
    model = make(**_arguments(make, config, offered))
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"model.target {config.target} returned a {type(model).__name__}; needed: a torch.nn.Module: "
            "name its class, or a function which returns one"
        )
    _check_output(model, config, classes, image_shape)
    if config.checkpoint is not None:
        path = Path(to_absolute_path(os.path.expanduser(config.checkpoint)))
        load_weights(model, path, config.checkpoint_skip)
    return model


def import_target(target: str) -> Callable[..., Any]:
    """The class or function at an import path, "package.module:Name" or "package.module.Name".

    Raises:
        ModelError: nothing can be called there, or the module fails to import.
    """
    make_working_directory_importable()
    module_path, colon, attributes = target.partition(":")
    if not colon:
        module_path, _, attributes = target.rpartition(".")
    if not module_path or not attributes:
        raise ModelError(
            f"model.target is {target!r}; allowed: package.module:Name or package.module.Name, "
            "such as model.target=dnas.models:resnet8"
        )
    try:
        found: Any = importlib.import_module(module_path)
    except Exception as error:
        raise ModelError(
            f"model.target is {target}, but importing {module_path} failed ({type(error).__name__}: {error}); "
            f"install it, or start in the directory which holds it (now {to_absolute_path('.')})"
        ) from error
    for name in attributes.split("."):
        if not hasattr(found, name):
            public = [item for item in getattr(found, "__all__", dir(found)) if not item.startswith("_")]
            raise ModelError(
                f"model.target is {target}, but {module_path} has no {attributes}; it has {', '.join(public[:20])}: "
                "correct the name"
            )
        found = getattr(found, name)
    if isinstance(found, nn.Module) or not callable(found):
        raise ModelError(
            f"model.target {target} is a {type(found).__name__}; needed: an nn.Module class or a function which "
            "returns a new model"
        )
    made: Callable[..., Any] = found
    return made


def _model_config(config: ModelConfig | DictConfig) -> ModelConfig:
    if isinstance(config, DictConfig):
        try:
            plain = OmegaConf.to_container(config, resolve=True)
            merged: Any = OmegaConf.to_container(OmegaConf.merge(OmegaConf.structured(ModelConfig), plain))
        except OmegaConfBaseException as error:
            raise ModelError(
                f"the configuration `model` does not fit: {str(error).splitlines()[0]}; "
                f"allowed keys: {', '.join(item.name for item in fields(ModelConfig))}"
            ) from error
        config = ModelConfig(**merged)
    if not config.target or config.target == MISSING:
        raise ModelError("model.target has no value; give an import path: model.target=package.module:Name")
    return config


def _arguments(make: Callable[..., Any], config: ModelConfig, offered: dict[str, Any]) -> dict[str, Any]:
    given = dict(config.arguments)
    try:
        signature = inspect.signature(make)
    except (TypeError, ValueError):  # compiled code may have none
        return given
    named = {
        name
        for name, parameter in signature.parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    for name, value in offered.items():
        if name in named:
            given.setdefault(name, value)
    try:
        signature.bind(**given)
    except TypeError as error:
        raise ModelError(
            f"model.arguments do not fit {config.target} ({error}); it takes {signature}, and was given "
            f"{', '.join(sorted(given)) or 'nothing'}: change model.arguments"
        ) from error
    return given


def _check_output(model: nn.Module, config: ModelConfig, classes: int, image_shape: tuple[int, ...]) -> None:
    """Runs two blank images through the model in evaluation mode, so that a misfit shows before any training."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            output = model(torch.zeros(2, *image_shape))
    except (RuntimeError, ValueError, IndexError) as error:
        raise ModelError(
            f"model {config.target} does not take images of the shape {list(image_shape)} "
            f"({str(error).splitlines()[0] if str(error) else type(error).__name__}); "
            "choose another model, or change model.arguments, data.image_size or data.channels"
        ) from error
    finally:
        for module, training in modes:
            module.training = training
    shape = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if shape != [2, classes]:
        raise ModelError(
            f"model {config.target} makes {shape} of two images; needed: logits [2, {classes}], one for each class: "
            f"set the number of outputs by model.arguments, such as +model.arguments.num_classes={classes}"
        )
