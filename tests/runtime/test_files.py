"""Files that are replaced are noticed once."""

from __future__ import annotations

import os
from pathlib import Path

from runtime.files import Changes


def test_what_is_written_replaced_or_removed_is_noticed_once(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_text("a")
    changes = Changes(str(first), "", str(second))
    assert not changes()
    second.write_text("b")
    assert changes()
    assert not changes()
    (tmp_path / "new").write_text("c")
    os.replace(tmp_path / "new", first)
    assert changes()
    first.unlink()
    assert changes()
    assert not changes()


def test_a_link_that_points_elsewhere_is_another_file(tmp_path: Path) -> None:
    """As a mounted Secret is renewed."""
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tls.crt").write_text(name)
    (tmp_path / "data").symlink_to("old")
    changes = Changes(str(tmp_path / "data/tls.crt"))
    (tmp_path / "next").symlink_to("new")
    os.replace(tmp_path / "next", tmp_path / "data")
    assert changes()


def test_nothing_never_changes() -> None:
    assert not Changes("")()
