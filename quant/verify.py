"""Checks that exported files compute what the realised network computes, down to single integer codes."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from quant.brevitas import QuantisedLayer, quantised_layers
from quant.fold import foldable, folded
from quant.graph import ExportedLayer, read_layers
from quant.integer import integer_reference
from quant.pack import packed_bytes
from quant.runtimes import Run, Runner, TorchRunner, integer_runner, onnxruntime_runner, qonnx_runner

TIE = 1e-4
"""How far from a rounding boundary, in steps, torch's value may lie where another executor rounds to the other side."""
LOGITS = 1e-4
"""Largest difference of outputs without any differing code, relative to the image's largest output (or 1 if smaller)."""
DECISIONS = 0.01
"""Largest share of differing elements of an output of whole numbers, where there is more than one."""
SMALL = 0.1
"""The same where outputs are small, relative to the largest of all images: less is rounding of larger sums before them."""


class VerificationError(RuntimeError):
    """An exported file does not compute what the network computes."""


@dataclass
class _Comparison:
    """What one executor's results differ in from torch's.

    Attributes:
        images: images compared.
        differing_predictions: images whose largest logit is another one.
        largest_logit_difference: over all images.
        largest_followed_logit_difference: the same where torch is given the executor's codes at every quantised input.
        tied_images: images with a code that is a float tie.
        ties: codes that differ, over all images and layers, torch given the executor's codes of the layers before.
        largest_tie_distance: largest distance of those from the rounding boundary, in steps.
    """

    images: int = 0
    differing_predictions: int = 0
    largest_logit_difference: float = 0.0
    largest_followed_logit_difference: float = 0.0
    tied_images: int = 0
    ties: int = 0
    largest_tie_distance: float = 0.0


def check_parameters(model: nn.Module, exported: list[ExportedLayer], where: str) -> None:
    """Compares integers, steps and grids of a file with the network's, batch normalisation folded where the file says so.

    Args:
        model: the realised network.
        exported: the file's layers.
        where: name of the file for error texts.

    Raises:
        VerificationError: anything differs; the text names layer and element.
    """
    layers = {layer.name: layer for layer in quantised_layers(model)}
    names = {layer.layer for layer in exported}
    if names != set(layers):
        raise VerificationError(
            f"{where}: quantised layers differ; only in the file: {sorted(names - set(layers))}, "
            f"only in the network: {sorted(set(layers) - names)}"
        )
    for use in exported:
        layer = layers[use.layer]
        _check_layer(layer if use.batch_norm is None else _folded(model, layer, use.batch_norm, where), use, where)


def _folded(model: nn.Module, layer: QuantisedLayer, path: str, where: str) -> QuantisedLayer:
    """The layer after the batch normalisation that the file says it has absorbed."""
    norm = foldable(model).get(path)
    found = None if norm is None else folded(layer, norm)
    if found is None:
        raise VerificationError(f"{where}: layer {layer.name}: the network has no batch normalisation {path!r} to fold")
    return found[0]


def _check_layer(layer: QuantisedLayer, found: ExportedLayer, where: str) -> None:
    for what, ours, theirs in (
        ("weight grid", layer.weights, found.weights), ("activation grid", layer.activations, found.activations)
    ):  # fmt: skip
        if ours != theirs:
            raise VerificationError(f"{where}: layer {found.name}: {what} is {theirs}; the network's is {ours}")
    for what, mine, other in (
        ("integer weight", layer.codes.cpu().numpy().astype(np.int64), found.weight_codes),
        ("weight step", layer.weight_step.cpu().numpy(), found.weight_steps),
        ("activation step", layer.activation_step.cpu().numpy(), found.act_step),
    ):
        if mine.shape != other.shape or mine.dtype != other.dtype:
            raise VerificationError(
                f"{where}: layer {found.name}: {what}s are {other.dtype}{list(other.shape)}; "
                f"the network's are {mine.dtype}{list(mine.shape)}"
            )
        wrong = np.argwhere(mine != other)
        if len(wrong):
            at = tuple(int(i) for i in wrong[0])
            raise VerificationError(
                f"{where}: layer {found.name}: {len(wrong)} {what}(s) differ; the first at {list(at)} is "
                f"{other[at]!s}, the network's is {mine[at]!s}"
            )


def _by_image(values: NDArray[Any], count: int) -> NDArray[Any]:
    """Shape (count, parts, ...): windows and patches of an image stand together; what no image enters is each one's."""
    if len(values) % count:
        return np.broadcast_to(values, (count, *values.shape))
    return values.reshape(count, len(values) // count, *values.shape[1:])


def _same_shapes(ours: Run, theirs: Run, where: str) -> None:
    if set(ours.codes) != set(theirs.codes):
        raise VerificationError(f"{where}: layers run are {sorted(theirs.codes)}; torch runs {sorted(ours.codes)}")
    for name, codes in ours.codes.items():
        if codes.shape != theirs.codes[name].shape:
            raise VerificationError(
                f"{where}: layer {name}: input is {theirs.codes[name].shape}; torch's is {codes.shape}"
            )
    if ours.logits.shape != theirs.logits.shape:
        raise VerificationError(f"{where}: logits have shape {theirs.logits.shape}; torch's are {ours.logits.shape}")
    if len(ours.others) != len(theirs.others):
        raise VerificationError(f"{where}: {1 + len(theirs.others)} outputs; torch has {1 + len(ours.others)}")
    for number, (mine, its) in enumerate(zip(ours.others, theirs.others, strict=True), 1):
        if mine is not None and its is not None and mine.shape != its.shape:
            raise VerificationError(f"{where}: output {number} has shape {its.shape}; torch's has {mine.shape}")
    for values, whose in ((ours.logits, "torch's logits"), (theirs.logits, f"{where}: logits")):
        if not np.isfinite(values).all():
            raise VerificationError(f"{whose} are not finite")


def _check_codes(ours: Run, theirs: Run, offset: int, where: str, result: _Comparison, tie: float) -> None:
    """Whether every code that differs is a float tie, in any layer; `ours` with the executor's codes of the layers before."""
    count = len(ours.logits)
    tied = np.zeros(count, bool)
    for name in ours.codes:
        mine, its = (_by_image(run.codes[name], count).astype(np.int64) for run in (ours, theirs))
        at = np.nonzero(mine != its)
        if not len(at[0]):
            continue
        value, a, b = _by_image(ours.scaled[name], count)[at], mine[at], its[at]
        distance = np.abs(value - (a + b) / 2)
        wrong = np.flatnonzero((np.abs(a - b) != 1) | ~(distance <= tie))
        if len(wrong):
            i = int(wrong[0])
            index = [int(axis[i]) for axis in at]
            element = index[2:] if mine.shape[1] == 1 else index[1:]
            raise VerificationError(
                f"{where}: layer {name}, image {offset + index[0]}, element {element}: code {b[i]}, torch's is {a[i]} "
                f"from value {value[i]:.6f} steps; no tie (distance {distance[i]:.2g}, allowed {tie:g})"
            )
        result.ties += len(value)
        result.largest_tie_distance = max(result.largest_tie_distance, float(distance.max()))
        tied[at[0]] = True
    result.tied_images += int(tied.sum())


def _check_outputs(ours: Run, theirs: Run, offset: int, where: str) -> float:
    """The largest difference of logits, where all codes are the same; that of further outputs is checked alone."""
    pairs = [(ours.logits, theirs.logits), *zip(ours.others, theirs.others, strict=True)]
    largest = []
    for number, (mine, its) in enumerate(pairs):
        if mine is None or its is None or mine.size == 0:
            continue
        if not np.issubdtype(mine.dtype, np.floating):  # decisions, as of an argmax: rounding may turn some
            changed = int((mine != its).sum())
            if changed > max(1, DECISIONS * mine.size):
                raise VerificationError(
                    f"{where}: output {number}: {changed} of {mine.size} elements differ, though all integer codes agree"
                )
            continue
        by_image = mine.ndim > 0 and len(mine) == len(ours.logits)
        a, b = (values.reshape(len(mine) if by_image else 1, -1).astype(np.float64) for values in (mine, its))
        difference = np.abs(a - b).max(1)
        allowed = np.minimum(LOGITS * np.maximum(1.0, np.abs(a).max(1)), max(SMALL * np.abs(a).max(), 1e-7))
        wrong = np.flatnonzero(~(difference <= allowed))
        if len(wrong):
            i = int(wrong[0])
            j = int(np.abs(a - b)[i].argmax())
            place = f"image {offset + i}, " if by_image else f"images from {offset} on, "
            what = f"logit {j}" if number == 0 else f"output {number}, element {j}"
            raise VerificationError(
                f"{where}: {place}{what}: {b[i, j]:.8g}, torch's is {a[i, j]:.8g}, though all integer "
                f"codes agree (allowed difference: {allowed[i]:.2g})"
            )
        largest.append(float(difference.max()))
    return largest[0]


def _check_batch(
    reference: TorchRunner, ours: Run, theirs: Run, images: Tensor, offset: int, where: str, result: _Comparison,
    tie: float,
) -> None:  # fmt: skip
    """Compares one batch and adds to `result`: every layer is judged on what the executor computed before it."""
    _same_shapes(ours, theirs, where)
    same = all(np.array_equal(codes, theirs.codes[name]) for name, codes in ours.codes.items())
    followed = ours if same else reference(images, theirs.codes)
    _check_codes(followed, theirs, offset, where, result, tie)
    largest = _check_outputs(followed, theirs, offset, where)
    result.largest_followed_logit_difference = max(result.largest_followed_logit_difference, largest)
    a, b = (run.logits.reshape(len(images), -1).astype(np.float64) for run in (ours, theirs))
    result.images += len(images)
    result.differing_predictions += int((a.argmax(1) != b.argmax(1)).sum())
    result.largest_logit_difference = max(result.largest_logit_difference, float(np.abs(a - b).max()))


def _aggregate(
    runs: Mapping[str, tuple[Runner, int]], reference: TorchRunner, images: Tensor, batch: int, tie: float
) -> dict[str, Any]:
    """Compares every executor with torch, each on its first so many images."""
    results = {name: _Comparison() for name in runs}
    for start in range(0, len(images), batch):
        part = images[start : start + batch]
        ours = reference(part)
        for name, (run, limit) in runs.items():
            count = min(len(part), limit - start)
            if count > 0:
                own = part[:count]
                mine = ours if count == len(part) else reference(own)
                _check_batch(reference, mine, run(own), own, start, name, results[name], tie)
    return {name: asdict(result) for name, result in results.items()}


def verify(
    model: nn.Module,
    example_inputs: tuple[Tensor, ...] | Tensor,
    images: Tensor,
    files: Mapping[str, str | Path],
    batch: int = 50,
    qonnx_images: int = 100,
    tie: float = TIE,
) -> dict[str, Any]:
    """Checks exported files against the network they were made of.

    Integers, steps and grids in each file must equal the network's exactly. Each executor runs the images; every integer
    code that differs from torch's, in any layer, must be a float tie: torch's value, computed from the executor's codes in
    the layers before, lies within `tie` steps of the rounding boundary between the two codes. Ties are counted. From the
    executor's codes, all of torch's outputs agree to LOGITS; the first one is taken for logits.

    Args:
        model: the realised network, with one input; not changed.
        example_inputs: the input it was exported with; only its shape is checked against `images`.
        images: shape (images, ...), as the network takes them.
        files: path by format, "qcdq" and/or "qonnx"; exported under the network's own layer names.
        batch: images at a time.
        qonnx_images: how many of the images the (slow) QONNX executor runs.
        tie: largest distance of a tie from the rounding boundary, in steps.

    Returns:
        JSON-able: "runtimes" by executor ("qcdq" in onnxruntime, "qonnx", "integer"), "layers" as read from the file,
        "packed" and "file_bytes", and the integer reference's "accumulators".

    Raises:
        VerificationError: a difference that is no tie.
        ValueError: images of another shape than the example, several inputs, or an unknown format.
    """
    examples = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    if len(examples) != 1 or examples[0].shape[1:] != images.shape[1:] or len(images) == 0:
        shapes = [tuple(x.shape) for x in examples]
        raise ValueError(f"verify: needs one input and images of its shape; inputs {shapes}, images {images.shape}")
    unknown = set(files) - {"qcdq", "qonnx"}
    if unknown or not files:
        raise ValueError(f"verify: files are of formats {sorted(files)}; allowed: qcdq, qonnx")
    exported = {format: read_layers(path) for format, path in files.items()}
    for format, layers in exported.items():
        check_parameters(model, layers, format)
    reference = integer_reference(model)
    runs: dict[str, tuple[Runner, int]] = {"integer": (integer_runner(reference), len(images))}
    if "qcdq" in files:
        runs["qcdq"] = onnxruntime_runner(files["qcdq"]), len(images)
    if "qonnx" in files:
        runs["qonnx"] = qonnx_runner(files["qonnx"], min(batch, qonnx_images)), qonnx_images
    return {
        "runtimes": _aggregate(runs, TorchRunner(model), images, batch, tie),
        "layers": {format: [layer.described() for layer in layers] for format, layers in exported.items()},
        "packed": asdict(packed_bytes(model)),
        "file_bytes": {format: Path(path).stat().st_size for format, path in files.items()},
        "accumulators": reference.accumulators(),
    }
