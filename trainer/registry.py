"""The models on disk, and which of them is in use.

    <directory>/<model_id>/manifest.json, evaluation.json and the model's files     never changed once it is there
    <directory>/state.json                                                          who serves, who shadows, what became of whom

Both appear whole or not at all (trainer/durable.py); the state is written after the models it names are there. A model
whose files do not fit its manifest any more is treated as not there. The number of models is bounded: the oldest that
nobody uses go.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from enum import IntEnum
from pathlib import Path

import msgspec

from prediction import bundle
from prediction.bundle import Bundle, BundleError
from prediction.scores import Score, Scores
from trainer.durable import Disk, make_directory, remove_directory, replace_file, sweep

log = logging.getLogger(__name__)

MODELS_MAX = 20
HISTORY_MAX = 200
STATE_FILE = "state.json"
MANIFEST_FILE = "manifest.json"
EVALUATION_FILE = "evaluation.json"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,79}")


class RegistryError(ValueError):
    """No such model, or a change that makes no sense now; in the caller's words."""


class Standing(IntEnum):
    """Numbers equal those of `headway.v1.ModelState` (a test compares them)."""

    TRAINED = 1
    REJECTED = 2
    SHADOW = 3
    SERVING = 4
    RETIRED = 5
    ROLLED_BACK = 6


class Event(msgspec.Struct, frozen=True):
    """at: Unix time, s."""

    at: float
    what: str
    model_id: str
    why: str


class State(msgspec.Struct, frozen=True, kw_only=True):
    """Which models are in use. Empty names: none. `sequence` grows with every change."""

    sequence: int = 0
    serving: str = ""
    previous: str = ""
    shadow: str = ""
    changed_at: float = 0.0
    standings: dict[str, Standing] = msgspec.field(default_factory=dict)
    history: tuple[Event, ...] = ()

    def standing(self, model_id: str) -> Standing:
        return self.standings.get(model_id, Standing.TRAINED)


class Entry(msgspec.Struct, frozen=True):
    """What is known of a model without loading it."""

    manifest: bundle.Manifest
    scores: Scores | None


_state = msgspec.json.Decoder(State)


class Registry:
    """One process at a time writes a directory."""

    def __init__(self, directory: Path, *, disk: Disk | None = None, models_max: int = MODELS_MAX) -> None:
        """Makes the directory, sweeps what a crash left, reads the state. RegistryError: not readable."""
        self.directory = directory
        self._disk = disk or Disk()
        self._models_max = models_max
        try:
            directory.mkdir(parents=True, exist_ok=True)
            sweep(directory)
        except OSError as error:
            raise RegistryError(f"{directory}: {error.strerror or error}") from error
        self.state = self._without_the_lost(self._read_state())

    # ------------------------------------------------------------------------------------------------------------- models

    def ids(self) -> list[str]:
        """Oldest training first."""
        found = [self.entry(path.parent.name) for path in self.directory.glob(f"*/{MANIFEST_FILE}")]
        kept = [entry.manifest for entry in found if entry is not None]
        return [manifest.model_id for manifest in sorted(kept, key=lambda manifest: (manifest.trained_at, manifest.model_id))]

    def entry(self, model_id: str) -> Entry | None:
        """None: no such model."""
        if not _NAME.fullmatch(model_id):
            return None
        try:
            manifest = bundle.read_manifest((self.directory / model_id / MANIFEST_FILE).read_bytes())
        except (OSError, BundleError):
            return None
        try:
            scores = decode_scores((self.directory / model_id / EVALUATION_FILE).read_bytes())
        except (OSError, msgspec.DecodeError):
            scores = None
        return Entry(manifest, scores) if manifest.model_id == model_id else None

    def load(self, model_id: str) -> Bundle:
        """RegistryError: no such model, or its files are not what its manifest says."""
        entry = self.entry(model_id)
        if entry is None:
            raise RegistryError(f"no model {model_id!r}")
        try:
            files = {name: (self.directory / model_id / name).read_bytes() for name in entry.manifest.files}
            return bundle.verified(entry.manifest, files)
        except (OSError, BundleError) as error:
            raise RegistryError(f"model {model_id}: {error}") from error

    def add(self, model: Bundle, scores: Scores, *, now_unix: float) -> None:
        """Keeps a new model, not in use. RegistryError: an id that is none, or is taken. OSError: the disk."""
        model_id = model.manifest.model_id
        if not _NAME.fullmatch(model_id):
            raise RegistryError(f"{model_id!r} is no id of a model: small letters, digits, '.', '_' and '-'")
        if (self.directory / model_id).exists():
            raise RegistryError(f"there is a model {model_id} already")
        own = {MANIFEST_FILE: bundle.manifest_json(model.manifest), EVALUATION_FILE: encode_scores(scores)}
        make_directory(self._disk, self.directory / model_id, model.files | own)
        self.change("trained", model_id, "", now_unix=now_unix, standings={model_id: Standing.TRAINED})
        self._bound()

    # -------------------------------------------------------------------------------------------------------------- state

    def change(
        self,
        what: str,
        model_id: str,
        why: str,
        *,
        now_unix: float,
        serving: str | None = None,
        previous: str | None = None,
        shadow: str | None = None,
        standings: Mapping[str, Standing] | None = None,
    ) -> State:
        """Writes a new state; what is None stays. OSError: the disk, and nothing has changed."""
        old = self.state
        state = State(
            sequence=old.sequence + 1,
            serving=old.serving if serving is None else serving,
            previous=old.previous if previous is None else previous,
            shadow=old.shadow if shadow is None else shadow,
            changed_at=now_unix,
            standings={name: one for name, one in (old.standings | dict(standings or {})).items() if self._has(name)},
            history=(*old.history, Event(now_unix, what, model_id, why))[-HISTORY_MAX:],
        )
        replace_file(self._disk, self.directory / STATE_FILE, msgspec.json.format(msgspec.json.encode(state), indent=1))
        self.state = state
        return state

    def _has(self, model_id: str) -> bool:
        """Whether its directory is there: what became of others is in the history."""
        return (self.directory / model_id).is_dir()

    def raise_sequence(self, above: int) -> None:
        """The next state is numbered above this: somebody has seen it. In memory only; the next change writes it."""
        if self.state.sequence <= above:
            self.state = msgspec.structs.replace(self.state, sequence=above + 1)

    def _bound(self) -> None:
        state = self.state
        used = {state.serving, state.previous, state.shadow}
        ids = self.ids()
        idle = [model_id for model_id in ids if model_id not in used]
        for model_id in idle[: max(0, len(ids) - self._models_max)]:
            remove_directory(self._disk, self.directory / model_id)

    def _read_state(self) -> State:
        path = self.directory / STATE_FILE
        try:
            return _state.decode(path.read_bytes())
        except FileNotFoundError:
            return State()
        except (OSError, msgspec.DecodeError) as error:
            raise RegistryError(f"{path}: {error}") from error

    def _without_the_lost(self, state: State) -> State:
        """Names whose models cannot be loaded are dropped: a disk may lose what was durable, an operator may remove it."""

        def there(model_id: str) -> str:
            if not model_id:
                return ""
            try:
                self.load(model_id)
            except RegistryError as error:
                log.warning("a model in use cannot be read", extra={"f": {"model": model_id, "error": error}})
                return ""
            return model_id

        serving, previous, shadow = there(state.serving), there(state.previous), there(state.shadow)
        if (serving, previous, shadow) == (state.serving, state.previous, state.shadow):
            return state
        sequence = state.sequence + 1
        return msgspec.structs.replace(state, sequence=sequence, serving=serving, previous=previous, shadow=shadow)


def encode_scores(scores: Scores) -> bytes:
    """JSON; figures that are not known become null."""
    return msgspec.json.format(msgspec.json.encode(scores), indent=1)


def decode_scores(data: bytes) -> Scores:
    """msgspec.DecodeError: not scores."""
    document = msgspec.json.decode(data)
    try:
        known = {name: value for name, value in document["overall"].items() if value is not None}
        zones = [_score({name: value for name, value in zone.items() if value is not None}) for zone in document["zones"]]
        low, medium, high = zones
        timed = document["predict_us"]
        return Scores((low, medium, high), _score(known), **({} if timed is None else {"predict_us": timed}))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise msgspec.DecodeError(f"not an evaluation: {error}") from error


def _score(known: dict[str, float]) -> Score:
    return Score(**known)  # type: ignore[arg-type]
