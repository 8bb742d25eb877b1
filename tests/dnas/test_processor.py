"""What a processor is known by: read from files as Linux writes them."""

from pathlib import Path

import pytest

import dnas.space.processor as known
from dnas.space.latency import LatencyError, LatencyTable, MeasureConfig, machine

X86 = """processor\t: 0
model name\t: AMD EPYC
flags\t\t: fpu sse2 avx avx2 {more}
processor\t: 1
model name\t: AMD EPYC
flags\t\t: fpu
"""
ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp i8mm sve2\n"


def test_one_name_with_other_instructions_is_another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, found = tmp_path / "cpuinfo", []
    monkeypatch.setattr(known, "CPUINFO", file)
    for more in ("bmi2", "avx512f avx512_vnni bmi2"):
        file.write_text(X86.format(more=more))
        assert known.processor() == "AMD EPYC"
        found.append(known.instructions())
    assert found == ["avx2", "avx2 avx512f avx512_vnni"]
    table = LatencyTable({}, machine(MeasureConfig())).to_json()
    assert LatencyTable.from_json(table, machine(MeasureConfig())).machine["instructions"] == found[1]
    file.write_text(X86.format(more="bmi2"))
    with pytest.raises(LatencyError, match="instructions"):
        LatencyTable.from_json(table, machine(MeasureConfig()))


def test_other_systems_have_a_name_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known, "CPUINFO", tmp_path / "none")
    assert known.processor()
    assert known.instructions() == ""
    (tmp_path / "none").write_text(ARM)
    assert known.instructions() == "asimddp i8mm"


def test_a_table_that_does_not_name_instructions_is_measured_elsewhere() -> None:
    here = machine(MeasureConfig())
    older = {key: value for key, value in here.items() if key != "instructions"}
    with pytest.raises(LatencyError, match=r"'instructions': \(None, '"):
        LatencyTable.from_json(LatencyTable({}, older).to_json(), here)
