"""Models on disk: whole or not there, whatever moment a crash picks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from prediction.scores import Score, Scores
from proto import trainer_pb2
from tests.trainer.traffic import outcomes, samples
from trainer.durable import Disk, TakenError, alone
from trainer.lifecycle import Lifecycle
from trainer.registry import Registry, RegistryError, Standing, State
from trainer.sample_log import SampleLog
from trainer.train import Trained, train


class Crash(BaseException):
    """The process would be gone here."""


class FailingDisk(Disk):
    """Does `steps` operations, then calls `stop` before the next one."""

    def __init__(self, steps: int, stop: Callable[[], None]) -> None:
        self.left = steps
        self._stop = stop

    def _step(self) -> None:
        if self.left == 0:
            self._stop()
        self.left -= 1

    def write(self, path: Path, data: bytes) -> None:
        self._step()
        half = path.open("wb")  # a crash in the middle of a write leaves a part of it
        half.write(data[: len(data) // 2])
        half.close()
        self._step()
        super().write(path, data)

    def sync_file(self, descriptor: int) -> None:
        self._step()
        super().sync_file(descriptor)

    def sync_directory(self, path: Path) -> None:
        self._step()
        super().sync_directory(path)

    def rename(self, source: Path, target: Path) -> None:
        self._step()
        super().rename(source, target)

    def remove(self, path: Path) -> None:
        self._step()
        super().remove(path)


def crash() -> None:
    raise Crash


@pytest.fixture(scope="module")
def three() -> list[Trained]:
    return [
        train(samples(400, seed), kind="linear", model_id=f"m-{seed}", seed=seed, now_unix=float(seed)) for seed in (1, 2, 3)
    ]


def history(registry: Registry, models: list[Trained]) -> Iterator[None]:
    """A life of models, step by step."""
    for trained in models:
        model_id = trained.bundle.manifest.model_id
        registry.add(trained.bundle, trained.scores, now_unix=trained.bundle.manifest.trained_at)
        yield
        if model_id == "m-1":
            registry.change("promoted", "m-1", "", now_unix=1.5, serving="m-1", standings={"m-1": Standing.SERVING})
            yield
    registry.change("promoted", "m-3", "", now_unix=11.0, serving="m-3", previous="m-1")
    yield
    registry.change("rolled back", "m-3", "", now_unix=12.0, serving="m-1", previous="")
    yield


def whole(directory: Path) -> Registry:
    """Opens what a crash left and checks that it is sound."""
    registry = Registry(directory)
    for model_id in registry.ids():
        assert registry.load(model_id).manifest.model_id == model_id
    state = registry.state
    for used in (state.serving, state.previous, state.shadow):
        assert not used or used in registry.ids()
    assert not list(directory.glob(".tmp-*"))
    return registry


def test_what_is_kept_is_there_again(tmp_path: Path, three: list[Trained]) -> None:
    list(history(Registry(tmp_path), three))
    again = Registry(tmp_path)
    assert again.ids() == ["m-1", "m-2", "m-3"]
    assert again.load("m-2") == three[1].bundle
    assert again.state.serving == "m-1"
    assert again.state.sequence == 6
    assert [event.what for event in again.state.history] == [
        "trained",
        "promoted",
        "trained",
        "trained",
        "promoted",
        "rolled back",
    ]
    entry = again.entry("m-3")
    assert entry is not None
    assert entry.scores is not None
    assert entry.scores.overall == three[2].scores.overall


def test_a_crash_at_any_point_leaves_the_state_before_or_after_and_no_half_model(tmp_path: Path, three: list[Trained]) -> None:
    crashes = 0
    for steps in range(400):
        directory = tmp_path / str(steps)
        before = State()
        disk = FailingDisk(steps, crash)
        registry = Registry(directory, disk=disk, models_max=2)
        try:
            for _ in history(registry, three):
                before = registry.state
        except Crash:
            crashes += 1
        else:
            break
        left = whole(directory).state
        assert before.sequence <= left.sequence <= before.sequence + 1
    assert crashes > 40
    assert disk.left >= 0, "the last run ended by itself"


def test_a_killed_process_leaves_what_the_next_one_goes_on_with(tmp_path: Path) -> None:
    """The real thing: SIGKILL, in the middle of a training's end and of a promotion."""
    seen = set()
    for steps in (0, 2, 5, 9, 14, 18, 23, 27, 32, 40):
        directory = tmp_path / str(steps)
        code = f"from tests.trainer.test_registry import killed_at; killed_at({str(directory)!r}, {steps})"
        ended = subprocess.run([sys.executable, "-c", code], timeout=60, check=False)
        assert ended.returncode in (-signal.SIGKILL, 0)
        registry = whole(directory / "models")
        seen.add((ended.returncode, len(registry.ids()), registry.state.serving))
        log = SampleLog(directory / "samples", rng=np.random.default_rng(0))
        assert log.position in ("0-0", "5-0")
        assert len(log) == (300 if log.position == "5-0" else 0)
    assert (-signal.SIGKILL, 0, "") in seen
    assert (-signal.SIGKILL, 1, "") in seen
    assert any(serving for _, _, serving in seen)


def killed_at(directory: str, steps: int) -> None:
    """In a process of its own: samples to disk, a training kept, promoted; SIGKILL before operation `steps`."""
    disk = FailingDisk(steps, lambda: os.kill(os.getpid(), signal.SIGKILL))
    log = SampleLog(Path(directory) / "samples", rng=np.random.default_rng(0), disk=disk)
    log.take(outcomes(300, 1), "5-0")
    log.flush()
    lifecycle = Lifecycle(Registry(Path(directory) / "models", disk=disk))
    trained = train(samples(400, 1), kind="linear", model_id="m-1", seed=1, now_unix=1.0)
    lifecycle.submit(trained, now_unix=1.0)
    lifecycle.promote("m-1", force=True, now_unix=2.0)


def test_models_are_bounded_and_those_in_use_stay(tmp_path: Path, three: list[Trained]) -> None:
    registry = Registry(tmp_path, models_max=2)
    registry.add(three[0].bundle, three[0].scores, now_unix=1.0)
    registry.change("promoted", "m-1", "", now_unix=1.0, serving="m-1")
    for trained in three[1:]:
        registry.add(trained.bundle, trained.scores, now_unix=2.0)
    assert registry.ids() == ["m-1", "m-3"]
    registry.change("shadow", "m-3", "", now_unix=3.0, shadow="m-3", standings={"m-3": Standing.SHADOW})
    assert set(registry.state.standings) == {"m-1", "m-3"}, "of those that are gone the history tells, not the state forever"


def test_a_model_whose_files_were_changed_is_not_served(tmp_path: Path, three: list[Trained]) -> None:
    registry = Registry(tmp_path)
    registry.add(three[0].bundle, three[0].scores, now_unix=1.0)
    registry.change("promoted", "m-1", "", now_unix=1.0, serving="m-1")
    (tmp_path / "m-1" / "linear.json").write_bytes(b"{}")
    with pytest.raises(RegistryError, match="has hash"):
        registry.load("m-1")
    again = Registry(tmp_path)
    assert again.state.serving == ""
    assert again.state.sequence > registry.state.sequence


def test_bad_names_and_bad_states_are_refused(tmp_path: Path, three: list[Trained]) -> None:
    registry = Registry(tmp_path)
    with pytest.raises(RegistryError, match="no model"):
        registry.load("../../etc/passwd")
    assert registry.entry("..") is None
    bad = msgspec.structs.replace(three[0].bundle.manifest, model_id="../evil")
    with pytest.raises(RegistryError, match="no id"):
        registry.add(type(three[0].bundle)(bad, three[0].bundle.files), three[0].scores, now_unix=1.0)
    registry.add(three[0].bundle, three[0].scores, now_unix=1.0)
    with pytest.raises(RegistryError, match="already"):
        registry.add(three[0].bundle, three[0].scores, now_unix=1.0)
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(RegistryError, match=r"state\.json"):
        Registry(tmp_path)


def test_figures_that_are_not_known_stay_unknown_on_disk(tmp_path: Path, three: list[Trained]) -> None:
    registry = Registry(tmp_path)
    nothing = Scores((Score(0), Score(0), Score(0)), Score(0))
    registry.add(three[0].bundle, nothing, now_unix=1.0)
    entry = registry.entry("m-1")
    assert entry is not None
    assert entry.scores is not None
    assert entry.scores.overall.samples == 0
    assert entry.scores.overall.mape != entry.scores.overall.mape


def test_one_process_at_a_time_has_a_directory(tmp_path: Path) -> None:
    with alone(tmp_path / "data"), pytest.raises(TakenError, match="another trainer"):
        alone(tmp_path / "data")
    alone(tmp_path / "data").close()


def test_standings_have_the_numbers_of_the_wire() -> None:
    assert {standing.name: int(standing) for standing in Standing} == {
        name: number for name, number in trainer_pb2.ModelState.items() if number
    }
