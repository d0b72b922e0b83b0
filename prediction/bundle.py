"""A model as data: a manifest that names every file with its SHA-256, and the files. Never a pickle.

One encoding serves Redis and the wire: a msgpack array of the manifest and the files' bytes. On disk the trainer's registry
keeps the same files beside a `manifest.json`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec

from prediction.errors import BundleError

__all__ = ["Bundle", "BundleError", "Manifest", "build", "decode", "encode", "fingerprint", "manifest_json", "read_manifest"]

BYTES_MAX = 64 * 1024 * 1024


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a model is. trained_at: Unix time, s; samples: rows it was trained on; files: SHA-256 in hex by name."""

    model_id: str
    kind: str
    feature_version: int
    features: tuple[str, ...]
    trained_at: float
    samples: int
    seed: int
    note: str = ""
    files: dict[str, str]
    settings: dict[str, Any] = msgspec.field(default_factory=dict)


class Bundle(msgspec.Struct, frozen=True):
    """files: content by the names in the manifest. Whoever has a Bundle has a whole model: `verified` made it."""

    manifest: Manifest
    files: dict[str, bytes]


class _Envelope(msgspec.Struct, array_like=True, frozen=True):
    magic: str
    manifest: bytes
    files: dict[str, bytes]


_MAGIC = "headway model 1"
_envelope = msgspec.msgpack.Decoder(_Envelope)
_manifest = msgspec.json.Decoder(Manifest)


def build(
    *,
    model_id: str,
    kind: str,
    feature_version: int,
    features: tuple[str, ...],
    trained_at: float,
    samples: int,
    seed: int,
    files: Mapping[str, bytes],
    note: str = "",
    settings: Mapping[str, Any] | None = None,
) -> Bundle:
    """A bundle of these files, with their hashes."""
    manifest = Manifest(
        model_id=model_id,
        kind=kind,
        feature_version=feature_version,
        features=features,
        trained_at=trained_at,
        samples=samples,
        seed=seed,
        note=note,
        files={name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())},
        settings=dict(settings or {}),
    )
    return Bundle(manifest, dict(files))


def verified(manifest: Manifest, files: Mapping[str, bytes]) -> Bundle:
    """BundleError: a file is missing, too many, or not the one that the manifest means."""
    if set(files) != set(manifest.files):
        raise BundleError(f"model {manifest.model_id}: has files {sorted(files)}, its manifest names {sorted(manifest.files)}")
    for name, content in files.items():
        found = hashlib.sha256(content).hexdigest()
        if found != manifest.files[name]:
            raise BundleError(f"model {manifest.model_id}: {name} has hash {found}, its manifest says {manifest.files[name]}")
    return Bundle(manifest, dict(files))


def fingerprint(manifest: Manifest) -> str:
    """SHA-256 over the files' hashes, in hex: one figure for the whole model."""
    text = "\n".join(f"{name} {digest}" for name, digest in sorted(manifest.files.items()))
    return hashlib.sha256(text.encode()).hexdigest()


def manifest_json(manifest: Manifest) -> bytes:
    return msgspec.json.format(msgspec.json.encode(manifest), indent=1)


def read_manifest(data: bytes) -> Manifest:
    """BundleError: not a manifest."""
    try:
        return _manifest.decode(data)
    except (msgspec.DecodeError, ValueError) as error:
        raise BundleError(f"model manifest: {error}") from error


def encode(bundle: Bundle) -> bytes:
    """For Redis and the wire."""
    return msgspec.msgpack.encode(_Envelope(_MAGIC, msgspec.json.encode(bundle.manifest), bundle.files))


def decode(data: bytes) -> Bundle:
    """BundleError: not a bundle, cut off, or changed on its way."""
    if len(data) > BYTES_MAX:
        raise BundleError(f"a model of {len(data)} bytes, at most {BYTES_MAX} are read")
    try:
        envelope = _envelope.decode(data)
    except (msgspec.DecodeError, ValueError) as error:
        raise BundleError(f"not a model: {error}") from error
    if envelope.magic != _MAGIC:
        raise BundleError(f"not a model of this build: it begins with {envelope.magic!r}")
    return verified(read_manifest(envelope.manifest), envelope.files)
