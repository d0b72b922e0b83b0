"""A model as data: whole, or refused."""

from __future__ import annotations

import pickle

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.features import FEATURES, VERSION
from prediction import bundle
from prediction.bundle import Bundle, BundleError


def made(**files: bytes) -> Bundle:
    return bundle.build(
        model_id="m-1",
        kind="linear",
        feature_version=VERSION,
        features=FEATURES,
        trained_at=1.5,
        samples=10,
        seed=3,
        note="n",
        files=files or {"a.txt": b"hello", "b.json": b"{}"},
    )


def test_what_is_encoded_is_read_back() -> None:
    model = made()
    assert bundle.decode(bundle.encode(model)) == model


@given(st.integers(0, 10_000))
def test_no_cut_of_it_is_a_model(cut: int) -> None:
    data = bundle.encode(made())
    with pytest.raises(BundleError):
        bundle.decode(data[: cut % len(data)])


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_changed_byte_is_refused_or_changes_nothing_that_is_hashed(place: int, flip: int) -> None:
    model = made()
    data = bytearray(bundle.encode(model))
    data[place % len(data)] ^= flip
    try:
        read = bundle.decode(bytes(data))
    except BundleError:
        return
    assert read.files == model.files  # the manifest's own words (a note, a date) carry no hash


def test_a_file_that_is_not_the_manifests_is_refused() -> None:
    model = made()
    with pytest.raises(BundleError, match=r"a\.txt has hash"):
        bundle.verified(model.manifest, model.files | {"a.txt": b"other"})
    with pytest.raises(BundleError, match="its manifest names"):
        bundle.verified(model.manifest, {"a.txt": b"hello"})
    with pytest.raises(BundleError, match="its manifest names"):
        bundle.verified(model.manifest, model.files | {"c": b""})


@pytest.mark.parametrize("data", [b"", b"\x80", pickle.dumps({"a": 1}), msgspec.msgpack.encode(["other", b"", {}])])
def test_what_is_no_model_is_refused(data: bytes) -> None:
    with pytest.raises(BundleError):
        bundle.decode(data)


def test_the_fingerprint_is_of_the_files_alone() -> None:
    first, second = made(), made()
    assert bundle.fingerprint(first.manifest) == bundle.fingerprint(second.manifest)
    assert bundle.fingerprint(first.manifest) != bundle.fingerprint(made(x=b"1").manifest)
