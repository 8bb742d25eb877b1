"""Models: their sizes against closed forms, and loading by import path and checkpoint."""

import json
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from safetensors.torch import save_file, save_model
from torch import Tensor, nn

import dnas
from dnas.models import (
    ModelConfig,
    ModelError,
    build_model,
    cifar_resnet,
    dscnn,
    mobilenetv2,
    resnet8,
    resnet18,
    resnet20,
    resnet56,
    resnet110,
)

CONF = Path(__file__).parents[2] / "conf"
SHAPE = (3, 8, 8)


def here(name: str) -> str:
    return f"{__name__}:{name}"


def macs(model: nn.Module, shape: tuple[int, ...]) -> int:
    """Counts the multiply-accumulates of convolutions and linear layers in one pass."""
    total = 0

    def count(module: nn.Module, _: Any, output: Tensor) -> None:
        nonlocal total
        weight = module.get_parameter("weight")
        total += output[0].numel() * weight[0].numel()

    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    with torch.no_grad():
        model.eval()(torch.zeros(1, *shape))
    for hook in hooks:
        hook.remove()
    return total


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def cifar_form(n: int, classes: int = 10, shortcut_norm: bool = True) -> tuple[int, int]:
    """Parameters and multiply-accumulates (at 32x32) of the CIFAR family, written out."""
    weights, norms, work = 3 * 16 * 9, 2 * 16, 3 * 16 * 9 * 32 * 32
    inputs = 16
    for width, side in ((16, 32), (32, 16), (64, 8)):
        convolutions = inputs * width * 9 + (2 * n - 1) * width * width * 9
        shortcut = inputs * width if inputs != width else 0
        weights += convolutions + shortcut
        norms += 2 * n * 2 * width + (2 * width if shortcut and shortcut_norm else 0)
        work += (convolutions + shortcut) * side * side
        inputs = width
    return weights + norms + 64 * classes + classes, work + 64 * classes


def test_the_cifar_family_has_the_sizes_of_the_closed_form() -> None:
    assert parameters(resnet8()) == cifar_form(1, shortcut_norm=False)[0] == 77_850
    assert macs(resnet8(), (3, 32, 32)) == cifar_form(1)[1]
    for make, n in ((resnet20, 3), (resnet56, 9), (resnet110, 18)):
        assert parameters(make()) == cifar_form(n)[0]
    assert macs(resnet20(), (3, 32, 32)) == cifar_form(3)[1]
    with pytest.raises(ValueError, match="depth is 9"):
        cifar_resnet(9)


def test_resnet18_has_the_published_size() -> None:
    work = 3 * 64 * 49 * 112**2 + 4 * 64 * 64 * 9 * 56**2
    for inputs, width, side in ((64, 128, 28), (128, 256, 14), (256, 512, 7)):
        work += (inputs * width * 9 + 3 * width * width * 9 + inputs * width) * side**2
    work += 512 * 1000
    model = resnet18()
    assert macs(model, (3, 224, 224)) == work == 1_814_073_344
    assert parameters(model) == 11_689_512
    keys = {"conv1.weight", "bn1.running_var", "layer1.1.bn2.bias", "layer4.0.downsample.1.weight", "fc.bias"}
    assert keys <= set(model.state_dict())
    assert len(model.state_dict()) == 122


def test_dscnn_has_the_size_of_the_closed_form() -> None:
    stem, depthwise, pointwise = 40 * 64, 9 * 64, 64 * 64
    model = dscnn()
    assert macs(model, (1, 49, 10)) == (stem + 4 * (depthwise + pointwise)) * 25 * 5 + 64 * 12
    assert parameters(model) == stem + 4 * (depthwise + pointwise) + 9 * 2 * 64 + 64 * 12 + 12
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 12)


def test_mobilenetv2_has_the_published_sizes() -> None:
    model = mobilenetv2()
    assert parameters(model) == 3_504_872
    assert macs(model, (3, 224, 224)) == 300_774_272
    assert "features.18.0.weight" in model.state_dict()
    assert "features.1.conv.1.weight" in model.state_dict()
    assert parameters(mobilenetv2(width=0.5)) == 1_968_680
    small = mobilenetv2(classes=10, width=0.35, stem="cifar")
    assert small.features(torch.zeros(1, 3, 32, 32)).shape == (1, 1280, 4, 4)
    with pytest.raises(ValueError, match="stem is 'x'"):
        mobilenetv2(stem="x")


@pytest.mark.parametrize("make", [resnet8, resnet20, resnet18, dscnn, lambda c, n: mobilenetv2(c, n, stem="cifar")])
def test_models_take_any_channels_and_train(make: Callable[[int, int], nn.Module]) -> None:
    model = make(2, 5)
    output = model(torch.randn(4, 2, 16, 16))
    output.square().sum().backward()
    assert output.shape == (4, 5)
    assert all(p.grad is not None for p in model.parameters())


class Tiny(nn.Module):
    """A linear model which does not know the names `classes` and `in_channels`."""

    def __init__(self, num_classes: int, image_shape: tuple[int, ...] = SHAPE) -> None:
        super().__init__()
        channels, height, width = image_shape
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out

    @classmethod
    def wide(cls, classes: int) -> "Tiny":
        return cls(classes)


an_instance = Tiny(10)


def a_string(**_: Any) -> str:
    return "no model"


def build(target: str, checkpoint: Path | None = None, **arguments: Any) -> nn.Module:
    path = None if checkpoint is None else str(checkpoint)
    return build_model(ModelConfig(target=target, arguments=arguments, checkpoint=path), 3, 10, SHAPE)


def test_targets_in_both_notations() -> None:
    assert parameters(build("dnas.models:resnet8")) == parameters(build("dnas.models.resnet8")) == 77_850
    assert parameters(build(here("Tiny"), num_classes=10)) == 192 * 10 + 10
    assert isinstance(build(here("Tiny.wide")), Tiny)
    model = build("dnas.models.resnet:cifar_resnet", depth=14, width=8)
    assert model.training
    assert all(module.training for module in model.modules())
    assert int(next(iter(build("dnas.models:resnet8").buffers())).count_nonzero()) == 0  # blank images left no trace


@pytest.mark.parametrize(
    ("target", "arguments", "text"),
    [
        ("resnet8", {}, r"model\.target is 'resnet8'; allowed"),
        ("???", {}, r"model\.target has no value"),
        ("no.such:Net", {}, r"importing no\.such failed \(ModuleNotFoundError"),
        ("dnas.models:resnet9", {}, r"has no resnet9; it has .*resnet8"),
        (here("CONF"), {}, r"is a .*Path; needed"),
        (here("an_instance"), {}, r"is a Tiny; needed"),
        (here("a_string"), {}, r"returned a str; needed"),
        (here("Tiny"), {}, r"missing a required argument: 'num_classes'"),
        ("dnas.models:resnet8", {"depth": 3}, r"unexpected keyword argument 'depth'.*takes \(in_channels"),
        (here("Tiny"), {"num_classes": 7}, r"makes \[2, 7\] of two images; needed: logits \[2, 10\]"),
        ("dnas.models:resnet8", {"in_channels": 1}, r"does not take images of the shape \[3, 8, 8\]"),
    ],
)
def test_errors_of_targets(target: str, arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ModelError, match=text):
        build(target, **arguments)


def test_a_model_in_the_working_directory_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "from torch import nn\ndef net(classes):\n    return nn.Sequential(nn.Flatten(), nn.LazyLinear(classes))\n"
    (tmp_path / "my_local_net.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [entry for entry in __import__("sys").path if entry])
    assert parameters(build("my_local_net.net")) == 1930


def test_checkpoints_in_all_forms(tmp_path: Path) -> None:
    state = Tiny(10).state_dict()
    save_file(state, tmp_path / "a.safetensors")
    parallel = OrderedDict((f"module.{key}", value) for key, value in state.items())
    for name, content in (
        ("b.pt", state),
        ("c.pth", {"state_dict": parallel, "epoch": 3}),
        ("d.pt", {"model": state}),
    ):
        torch.save(content, tmp_path / name)
    for name in ("a.safetensors", "b.pt", "c.pth", "d.pt"):
        loaded = build(here("Tiny"), tmp_path / name, num_classes=10).state_dict()
        assert all(torch.equal(loaded[key], state[key]) for key in state)
    norm = {key: value for key, value in resnet8().state_dict().items() if not key.endswith("num_batches_tracked")}
    torch.save(norm, tmp_path / "old.pt")
    build("dnas.models:resnet8", tmp_path / "old.pt")


def test_errors_of_checkpoints(tmp_path: Path) -> None:
    state = Tiny(10).state_dict()
    torch.save(an_instance, tmp_path / "pickle.pt")
    torch.save({"epoch": 3}, tmp_path / "other.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save(Tiny(11).state_dict(), tmp_path / "shape.pt")
    torch.save({"layers.1.weight": state["layers.1.weight"], "head.bias": torch.zeros(2)}, tmp_path / "keys.pt")
    torch.save(state, tmp_path / "cut.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "cut.pt").read_bytes()[:-200])
    (tmp_path / "bad.safetensors").write_bytes(b"\x01\x02")
    (tmp_path / "weights.h5").write_bytes(b"x")
    for name, text in (
        ("absent.pt", r"absent\.pt, where no file exists"),
        ("weights.h5", r"weights\.h5; allowed: \.safetensors, \.pt or \.pth"),
        ("bad.safetensors", r"not a complete safetensors file"),
        ("cut.pt", r"cut\.pt cannot be read"),
        ("pickle.pt", r"more than weights.*torch\.save\(model\.state_dict\(\)"),
        ("other.pt", r"other values than tensors, at epoch"),
        ("list.pt", r"holds a list"),
        ("shape.pt", r"of another shape: layers\.1\.weight \(file \[11, 192\], model \[10, 192\]\)"),
        ("keys.pt", r"1 missing in the file: layers\.1\.bias; 1 unknown to the model: head\.bias"),
    ):
        with pytest.raises(ModelError, match=text):
            build(here("Tiny"), tmp_path / name, num_classes=10)


def equal(model: nn.Module, state: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("prefix", ["module._orig_mod.", "_orig_mod.module.", "model.", "net.backbone."])
def test_prefixes_of_all_keys_are_dropped(tmp_path: Path, prefix: str) -> None:
    state = Tiny(10).state_dict()
    save_file({prefix + key: value for key, value in state.items()}, tmp_path / "w.safetensors")
    model = Tiny(10)
    dnas.load_weights(model, str(tmp_path / "w.safetensors"))
    assert equal(model, state)
    one = {"model.layers.1.weight": state["layers.1.weight"], "loss.weight": torch.zeros(2)}
    torch.save(one, tmp_path / "two.pt")  # not the prefix of all: nothing is dropped, and the file's own keys are named
    with pytest.raises(ModelError, match=r"2 unknown to the model: model\.layers\.1\.weight, loss\.weight"):
        dnas.load_weights(model, tmp_path / "two.pt")
    save_file({"net.a.x": torch.zeros(2), "net.a.y": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match=r"2 unknown to the model: net\.a\.x, net\.a\.y"):
        dnas.load_weights(model, tmp_path / "other.safetensors")


def test_half_precision_goes_into_float32(tmp_path: Path) -> None:
    state = Tiny(10).state_dict()
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        stored = {key: value.to(dtype) for key, value in state.items()}
        save_file(stored, tmp_path / "w.safetensors")
        model = Tiny(10)
        dnas.load_weights(model, tmp_path / "w.safetensors")
        assert {value.dtype for value in model.state_dict().values()} == {torch.float32}
        assert equal(model, {key: value.float() for key, value in stored.items()})


class Tied(nn.Module):
    """An embedding whose weight is the last layer's, too."""

    def __init__(self, tied: bool = True) -> None:
        super().__init__()
        self.embed, self.last = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
        if tied:
            self.last.weight = self.embed.weight


def test_shared_weights_are_stored_once(tmp_path: Path) -> None:
    source, path = Tied(), tmp_path / "w.safetensors"
    save_model(source, str(path))
    model = Tied()
    dnas.load_weights(model, path)
    assert equal(model, source.state_dict())
    assert model.last.weight is model.embed.weight
    with pytest.raises(ModelError, match=r"1 missing in the file: (embed|last)\.weight"):
        dnas.load_weights(Tied(tied=False), path)
    torch.save(Tied(tied=False).state_dict(), tmp_path / "two.pt")
    with pytest.raises(
        ModelError, match=r"shared in the model, but unlike in the file: embed\.weight and last\.weight"
    ):
        dnas.load_weights(model, tmp_path / "two.pt")
    torch.save(source.state_dict(), tmp_path / "both.pt")
    with pytest.raises(ModelError, match=r"embed\.weight \(one weight with last\.weight, which is skipped\)"):
        dnas.load_weights(model, tmp_path / "both.pt", ["last.*"])
    assert equal(model, source.state_dict())  # a file that does not fit changes nothing


def test_a_new_head_keeps_its_values(tmp_path: Path) -> None:
    source, path = resnet8(3, 100), tmp_path / "w.safetensors"
    save_file(source.state_dict(), path)
    target = resnet8(3, 10)
    head = {key: value.clone() for key, value in target.fc.state_dict().items()}
    with pytest.raises(ModelError, match=r"2 of another shape: fc\.weight .*checkpoint_skip"):
        dnas.load_weights(target, path)
    dnas.load_weights(target, path, ["fc.*"])
    assert all(torch.equal(value, head[key]) for key, value in target.fc.state_dict().items())
    trunk = {key: value for key, value in source.state_dict().items() if not key.startswith("fc.")}
    assert all(torch.equal(target.state_dict()[key], value) for key, value in trunk.items())

    renamed = {key.replace("fc.", "head."): value for key, value in source.state_dict().items()}
    torch.save(renamed, tmp_path / "renamed.pt")  # what only the file has can be left there
    dnas.load_weights(target, tmp_path / "renamed.pt", ["fc.*", "head.*"])
    with pytest.raises(ModelError, match=r"2 unknown to the model: head\.weight, head\.bias"):
        dnas.load_weights(target, tmp_path / "renamed.pt", ["fc.*"])
    with pytest.raises(ModelError, match=r"checkpoint_skip: 'classifier\.\*' matches no key"):
        dnas.load_weights(target, path, ["fc.*", "classifier.*"])
    config = ModelConfig(target="dnas.models:resnet8", checkpoint=str(path), checkpoint_skip=["fc.*"])
    assert torch.equal(build_model(config, 3, 10, SHAPE).get_parameter("conv1.weight"), source.conv1.weight)


def test_numbers_that_are_no_weights(tmp_path: Path) -> None:
    state = Tiny(10).state_dict()
    key = "layers.1.weight"
    for name, value, text in (
        (
            "whole",
            state[key].to(torch.int8),
            rf"of another kind of number: {key} \(file torch.int8, model torch.float32\)",
        ),
        ("nan", torch.full_like(state[key], torch.nan), f"1 not finite: {key}"),
        ("large", torch.full_like(state[key], 1e300, dtype=torch.float64), f"1 not finite: {key}"),
    ):
        torch.save({**state, key: value}, tmp_path / f"{name}.pt")
        with pytest.raises(ModelError, match=text):
            dnas.load_weights(Tiny(10), tmp_path / f"{name}.pt")


def test_folders_of_safetensors(tmp_path: Path) -> None:
    source, whole, sharded = resnet8(3, 10), tmp_path / "whole", tmp_path / "sharded"
    state = source.state_dict()
    for folder in (whole, sharded):
        folder.mkdir()
    save_file(state, whole / "model.safetensors")
    files = {key: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, key in enumerate(state)}
    for file in set(files.values()):
        save_file({key: value for key, value in state.items() if files[key] == file}, sharded / file)
    index = sharded / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}))
    for path in (whole, sharded, index):
        model = resnet8(3, 10)
        dnas.load_weights(model, path)
        assert equal(model, state)

    first = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps({"weight_map": {**files, "more.weight": first}}))
    with pytest.raises(ModelError, match=r"its shards lack more\.weight"):
        dnas.load_weights(model, sharded)
    index.write_text(json.dumps({"weight_map": {**files, "conv1.weight": "../whole/model.safetensors"}}))
    with pytest.raises(ModelError, match=r"names the shard \.\./whole/model\.safetensors"):
        dnas.load_weights(model, sharded)
    index.write_text(json.dumps({"weight_map": files}))
    (sharded / first).unlink()
    with pytest.raises(ModelError, match=r"names the shard model-00001-of-00002\.safetensors, which is not"):
        dnas.load_weights(model, sharded)
    index.write_text("[1]")
    with pytest.raises(ModelError, match=r"is no index of shards"):
        dnas.load_weights(model, sharded)
    (whole / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"is the folder .*it needs model\.safetensors"):
        dnas.load_weights(model, whole)


def test_configuration_files() -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for name in ("resnet8", "resnet20", "resnet18", "dscnn", "mobilenetv2"):
            config = compose(overrides=[f"+model={name}"]).model
            assert set(config) == set(vars(ModelConfig()))
            assert build_model(config, 1, 4, (1, 32, 32))(torch.zeros(2, 1, 32, 32)).shape == (2, 4)
        custom = compose(overrides=["+model=custom"]).model
        wrong = compose(overrides=["+model=resnet8", "+model.depth=3"]).model
    with pytest.raises(ModelError, match=r"model\.target has no value"):
        build_model(custom, 1, 4, (1, 8, 8))
    with pytest.raises(ModelError, match=r"depth.*allowed keys: name, target, arguments, checkpoint"):
        build_model(wrong, 1, 4, (1, 8, 8))
