"""Two processes: each measures on images of its own, and both end at one architecture."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = """
import atexit, json, os, sys
from pathlib import Path
import torch
from dnas.data.batches import Batches
from dnas.engine import Engine, EngineConfig
from dnas.models.resnet import resnet8
from dnas.realise import realise
from dnas.retrain import RetrainConfig, retrain
from dnas.search.budget import Budget
from dnas.search.supernet import Supernet
from dnas.search.training import SearchConfig
from dnas.searcher import search
from dnas.select.select import select
from dnas.space.build import build_space
from safetensors.torch import save_model

settings, folder = json.loads(sys.argv[1]), Path(sys.argv[2])

@atexit.register  # before the engine's own, so that this is called after it
def connected():
    (folder / f"connected_{os.environ['RANK']}").write_text(str(torch.distributed.is_initialized()))

engine = Engine(EngineConfig(device="cpu", processes=2, threads=1, progress=False))
torch.manual_seed(0)
model = resnet8(3, 10).eval()
images = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
space = build_space(model, (images,), (2, 4, 8), (2, 8), (0.5, 1.0))
supernet = Supernet(model, space, seed=0)
supernet.calibrate(images)

class Drawn:  # other images in every process
    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)
        self.batches = [
            (torch.randn(8, 3, 16, 16, generator=self.generator), torch.randint(10, (8,), generator=self.generator))
            for _ in range(4)
        ]
    def __len__(self):
        return len(self.batches)
    def epoch(self, epoch):
        return iter(self.batches)

sets = [Drawn(10 * number + engine.rank) for number in range(2)] + [Drawn(100)]
checkpoint = folder / "search.ckpt"
scores, _ = search(supernet, Budget(bops=0.1), *sets, None, SearchConfig(**settings), engine, checkpoint)
assert checkpoint.exists()
(folder / f"{engine.rank}.json").write_text(scores.to_json())
small = realise(supernet, select(scores, space, Budget(bops=0.1)))
history = retrain(small, sets[0], sets[2], None, RetrainConfig(epochs=1, norm_images=16), engine)
(folder / f"history_{engine.rank}.json").write_text(json.dumps(history))
save_model(small, str(folder / f"{engine.rank}.safetensors"))
"""


@pytest.mark.parametrize(
    "settings",
    [
        {"searcher": "neighbourhood", "epochs": 1, "rounds": 1, "score_images": 16, "train": "needed"},
        {"searcher": "gumbel", "epochs": 1, "score_images": 16, "score_rounds": 1},
    ],
    ids=["sensitivities", "gumbel"],
)
def test_every_process_ends_with_the_same_scores(settings: dict[str, object], tmp_path: Path) -> None:
    script = tmp_path / "searched.py"
    script.write_text(SCRIPT)
    subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0", "--rdzv_backend=c10d",
            "--rdzv_endpoint=localhost:0", str(script), json.dumps(settings), str(tmp_path),
        ],
        check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=300,
    )  # fmt: skip
    connected = [(tmp_path / f"connected_{rank}").read_text() for rank in range(2)]
    assert connected == ["False", "False"]  # a process that ends connected may be aborted after its work
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    histories = [json.loads((tmp_path / f"history_{rank}.json").read_text()) for rank in range(2)]
    assert histories[0] == histories[1]  # what a record says does not depend on who writes it last
    weights, others = (load_file(tmp_path / f"{rank}.safetensors") for rank in range(2))
    assert weights.keys() == others.keys()
    for name, value in weights.items():  # batch-norm statistics, too, though each process has images of its own
        assert torch.equal(value, others[name]), name
