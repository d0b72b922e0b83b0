"""Against the recordings themselves, where they are beside the checkout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from emulator.fidelity import cpu, gpu
from emulator.fidelity.__main__ import main
from emulator.fidelity.recording import Recording, RecordingError, read
from emulator.presets import LLAMA3_8B_H100, TINY_CPU


@pytest.fixture(scope="module")
def recording(shared: Path) -> Recording:
    return read(shared / "vllm_real" / "profile_cpu.csv")


def test_the_recorded_prompts_are_drawn_again_and_share_what_they_shared(recording: Recording) -> None:
    assert (len(recording), recording.num_runs, len(set(recording.levels))) == (2_383, 66, 22)
    found = cpu.as_shipped(recording)
    assert np.mean(found.cached_tokens == recording.cached_tokens) > 0.97


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_tiny_cpu_is_what_the_fit_prints(recording: Recording) -> None:
    latency, _ = cpu.fit_constants(recording, frozenset(recording.levels), iterations=1)
    found, shipped = cpu.constants_of(latency), cpu.constants_of(TINY_CPU.batching)
    # The fit begins at the shipped values; its first step is the longest. Where `decode_s_per_sequence` or
    # `prefill_s_per_token` is an eighth off, it takes some constant 2 to 5 % away.
    for name, ratio in zip(cpu.CONSTANTS, found / shipped, strict=True):
        assert ratio == pytest.approx(1.0, abs=0.1 if name == "request_s" else 0.015), name


@pytest.mark.slow
def test_llama3_8b_h100_is_what_the_fit_prints(shared: Path) -> None:
    preset = gpu.measure(shared / "data" / "profiling").preset
    shipped = LLAMA3_8B_H100.batching
    for name in shipped.__dataclass_fields__:
        assert getattr(preset, name) == pytest.approx(getattr(shipped, name), rel=1e-3, abs=1e-12), name


def test_a_recording_that_is_not_there_is_one_line_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "profile_cpu.csv" in line


def test_a_table_without_the_recorded_columns_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "profile_cpu.csv"
    path.write_text("id,phase\n1,closed_1\n")
    with pytest.raises(RecordingError, match=r"profile_cpu\.csv"):
        read(path)
