"""The wheel carries the configuration and runs from any folder."""

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import torch

from tests.small import SMALL

ROOT = Path(__file__).parents[2]


def test_the_wheel_runs(tmp_path: Path) -> None:
    """Built from a copy of the sources, installed beside nothing but the dependencies."""
    import shutil

    source = tmp_path / "source"
    source.mkdir()
    for name in ("dnas", "quant", "conf"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet", ".", "-w", ".."]
    subprocess.run([*command, "--disable-pip-version-check"], cwd=source, check=True, timeout=60)
    (wheel,) = tmp_path.glob("dnas-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {f"dnas/{path.relative_to(ROOT)}" for path in (ROOT / "conf").rglob("*.yaml")}
    assert wanted <= names
    assert not [name for name in names if name.split("/")[0] not in ("dnas", "quant") and ".dist-info" not in name]
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    python = tmp_path / "venv" / "bin" / "python"
    (packages,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    zipfile.ZipFile(wheel).extractall(packages)
    # a line of a .pth file adds a folder to the path, but runs no .pth files in there: the checkout is not found
    (packages / "dependencies.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
    (tmp_path / "elsewhere").mkdir()
    code = (
        "import sys, dnas, quant, dnas.cli\n"
        f"assert dnas.__file__.startswith({str(packages)!r}), dnas.__file__\n"
        f"assert quant.__file__.startswith({str(packages)!r}), quant.__file__\n"
        f"assert str(dnas.cli.configuration_folder()).startswith({str(packages)!r})\n"
        f"sys.argv = ['dnas', 'stage=preflight', 'folder=run', *{SMALL!r}]\n"
        "dnas.cli.main()\n"
    )
    found = subprocess.run(
        [python, "-c", code], cwd=tmp_path / "elsewhere", capture_output=True, text=True, check=False, timeout=120
    )
    assert found.returncode == 0, found.stderr
    assert (tmp_path / "elsewhere" / "run" / "space.json").exists()
    (entry,) = packages.glob("dnas-*.dist-info/entry_points.txt")
    assert "dnas = dnas.cli:main" in entry.read_text()
