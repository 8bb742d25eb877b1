import io
import json
import math
from pathlib import Path

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dnas.board import Board
from dnas.pictures import heat_map_picture
from dnas.space.architecture import Architecture
from dnas.space.choice import ChannelMap, Choice, Group, Layer, Space


def small_space() -> Space:
    full = ChannelMap((0,) * 8, tuple(range(8)))
    return Space(
        (
            Choice("conv.filters", "filters", (4, 8)),
            Choice("conv.weight_bits", "weight_bits", (2, 4, 8)),
            Choice("conv.act_bits", "act_bits", (8,)),
        ),
        (Group("conv.filters", 8, ("conv",)),),
        (Layer("conv", "Conv2d", 16, 9, 1, False, full, full, "conv.weight_bits", "conv.act_bits"),),
        (),
        {},
    )


def probabilities(step: int) -> dict[str, list[float]]:
    share = 1 / (2 + step)
    return {"conv.filters": [share, 1 - share], "conv.weight_bits": [share, 0.0, 1 - share], "conv.act_bits": [1.0]}


def read(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0})
    events.Reload()
    return events


def test_scalars_and_entropies_come_back(tmp_path: Path) -> None:
    board = Board(tmp_path)
    for step in range(3):
        board.scalars({"loss/train": 1.0 / (step + 1), "accuracy": 90 + step}, step)
        board.choices(small_space(), probabilities(step), step)
    board.close()
    events = read(tmp_path)
    assert set(events.Tags()["scalars"]) == {
        "loss/train", "accuracy", "entropy/conv.filters", "entropy/conv.weight_bits", "entropy_mean/filters",
        "entropy_mean/weight_bits",
    }  # fmt: skip
    assert [(e.step, e.value) for e in events.Scalars("loss/train")] == [
        (0, 1.0), (1, 0.5), (2, pytest.approx(1 / 3)),
    ]  # fmt: skip
    found = [e.value for e in events.Scalars("entropy/conv.weight_bits")]
    assert found == pytest.approx([-sum(p * math.log(p) for p in (s, 1 - s)) for s in (1 / 2, 1 / 3, 1 / 4)])
    assert found[0] == pytest.approx(math.log(2))


def test_one_heat_map_per_kind_and_the_architecture(tmp_path: Path) -> None:
    space, board = small_space(), Board(tmp_path)
    board.heat_maps(0)
    for step in range(3):
        board.choices(space, probabilities(step), step)
    board.heat_maps(2)
    board.architecture(Architecture(space, {"conv.filters": 4, "conv.weight_bits": 2, "conv.act_bits": 8}), 3)
    board.close()
    events = read(tmp_path)
    assert set(events.Tags()["images"]) == {"choices/filters", "choices/weight_bits", "architecture"}
    for tag, step in (("choices/filters", 2), ("architecture", 3)):
        (event,) = events.Images(tag)
        assert event.step == step
        with Image.open(io.BytesIO(event.encoded_image_string)) as image:
            assert image.size == (event.width, event.height)
            assert image.width > 500
            assert len(image.getcolors(1 << 20) or []) > 10


def test_sentences_are_paragraphs_of_text(tmp_path: Path) -> None:
    board = Board(tmp_path)
    board.text("estimator/findings", ["Depth pays.", "Filters pay."], 0)
    board.close()
    events = read(tmp_path)
    (tag,) = events.Tags()["tensors"]
    assert tag == "estimator/findings/text_summary"
    (event,) = events.Tensors(tag)
    assert event.tensor_proto.string_val == [b"Depth pays.\n\nFilters pay."]


def test_hparams_are_in_the_same_folder(tmp_path: Path) -> None:
    board = Board(tmp_path)
    params = {"seed": 1, "lr": 0.1, "mode": "gumbel", "hard": True, "layers": [1, 2], "none": None}
    board.hparams(params, {"test_accuracy": 96.5, "bops": 0.049}, 7)
    board.close()
    assert [path.is_file() for path in tmp_path.iterdir()] == [True]
    events = read(tmp_path)
    assert set(events.PluginTagToContent("hparams")) == {
        "_hparams_/experiment", "_hparams_/session_start_info", "_hparams_/session_end_info",
    }  # fmt: skip
    from tensorboard.plugins.hparams import plugin_data_pb2

    raw = events.PluginTagToContent("hparams")["_hparams_/session_start_info"]
    found = plugin_data_pb2.HParamsPluginData.FromString(raw).session_start_info.hparams
    assert found["lr"].number_value == pytest.approx(0.1)
    assert found["mode"].string_value == "gumbel"
    assert found["hard"].string_value == "True"
    assert found["layers"].string_value == "[1, 2]"
    (event,) = events.Scalars("test_accuracy")
    assert (event.step, event.value) == (7, pytest.approx(96.5))


def test_resumed_board_continues_without_a_seam(tmp_path: Path) -> None:
    whole, space = Board(tmp_path / "whole"), small_space()
    for step in range(6):
        whole.scalars({"loss": step}, step)
        whole.choices(space, probabilities(step), step)
    first = Board(tmp_path / "cut")
    for step in range(5):
        first.scalars({"loss": step if step < 3 else -1.0}, step)
        first.choices(space, probabilities(step if step < 3 else 9), step)
    saved = json.loads(json.dumps(first.state()))
    first.close()
    second = Board(tmp_path / "cut", purge_step=3)
    second.load_state(saved)
    assert second.state()["steps"] == [0, 1, 2]
    for step in range(3, 6):
        second.scalars({"loss": step}, step)
        second.choices(space, probabilities(step), step)
    assert second.state() == whole.state()
    second.close()
    whole.close()
    assert sorted((e.step, e.value) for e in read(tmp_path / "cut").Scalars("loss")) == [(s, s) for s in range(6)]


def test_a_step_written_again_replaces_what_came_after(tmp_path: Path) -> None:
    board = Board(tmp_path)
    for step in (0, 1, 2, 1):
        board.choices(small_space(), probabilities(step), step)
    state = board.state()
    board.close()
    assert state["steps"] == [0, 1]
    assert len(state["choices"]["conv.filters"]["probabilities"]) == 2
    state["steps"].append(9)
    assert board.state()["steps"] == [0, 1]


def test_without_a_folder_nothing_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    board, space = Board(None), small_space()
    assert not board.enabled
    board.scalars({"loss": 1.0}, 0)
    board.choices(space, probabilities(0), 0)
    board.heat_maps(0)
    board.architecture(Architecture(space, {"conv.filters": 4, "conv.weight_bits": 2, "conv.act_bits": 8}), 0)
    board.hparams({"a": 1}, {"b": 2.0})
    board.load_state({"steps": [1], "choices": {}})
    assert board.state() == {"steps": [1], "choices": {}}
    board.flush()
    board.close()
    assert list(tmp_path.iterdir()) == []


def test_wrong_number_of_probabilities(tmp_path: Path) -> None:
    board = Board(tmp_path)
    with pytest.raises(ValueError, match=r"conv\.filters: 3 probabilities, but 2 options"):
        board.choices(small_space(), probabilities(0) | {"conv.filters": [0.2, 0.3, 0.5]}, 0)
    assert board.state() == {"steps": [], "choices": {}}
    board.close()


def test_heat_map_of_many_choices_and_of_one_step() -> None:
    history = {f"features.{i}.conv.weight_bits": ((2, 4, 8), [[0.2, 0.3, 0.5]] * 4) for i in range(60)}
    picture = heat_map_picture("weight_bits", [0, 5, 10, 20], history)
    text = picture.svg()
    assert all(f">features.{i}.conv<" in text for i in range(60))
    height, width, _ = picture.pixels(100).shape
    assert width < 1100
    assert height > 15 * 3 * 15  # fifteen rows of three bands, each as high as its label
    assert heat_map_picture("filters", [3], {"x.filters": ((1, 2), [[0.5, 0.5]])}).png()
