"""`headway keys`: what the file is like after it, whoever else changes it, and what mistakes are answered."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dataplane.keys import hash_of, parse
from headway.keys import FILE_VARIABLE

ROOT = Path(__file__).parents[2]
AT_ONCE = 6


def start(*arguments: str, directory: Path | None = None) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "headway", "keys", *arguments]
    environment = {name: value for name, value in os.environ.items() if name != FILE_VARIABLE} | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=directory, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def keys(*arguments: str, directory: Path | None = None) -> tuple[int, str, str]:
    process = start(*arguments, directory=directory)
    out, error = process.communicate(timeout=60)
    return process.returncode, out, error


def test_of_several_commands_at_once_none_undoes_another(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    running = [start("new", "--tenant", f"t{number}", "--keys-file", str(path)) for number in range(AT_ONCE)]
    tokens = [process.communicate(timeout=60)[0].strip() for process in running]
    found = parse(path.read_bytes())
    assert {key.tenant for key in found} == {f"t{number}" for number in range(AT_ONCE)}
    assert {key.hash for key in found} == {hash_of(token.encode()) for token in tokens}
    assert [file.name for file in tmp_path.iterdir()] == ["keys"]  # nothing is left beside it


def test_comments_other_lines_and_permissions_stay(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# of the search team\n\n")
    path.chmod(0o640)
    code, token, _ = keys("new", "--tenant", "a", "--model", "m", "--keys-file", str(path))
    assert code == 0
    assert path.read_text().startswith("# of the search team\n\n{")
    assert path.stat().st_mode & 0o777 == 0o640
    (key,) = parse(path.read_bytes())
    assert (key.models, key.hash) == (("m",), hash_of(token.strip().encode()))
    assert keys("revoke", key.id, "--keys-file", str(path))[0] == 0
    assert path.read_text() == "# of the search team\n\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_file_stays_its_owners(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("")
    os.chown(path, 1234, 1234)
    assert keys("new", "--tenant", "a", "--keys-file", str(path))[0] == 0
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 1234)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("new", "--tenant", "a"), "no keys file"),
        (("new", "--keys-file", "keys"), "--tenant"),
        (("new", "--tenant", "a", "--keys-file", "/absent/keys"), "No such file"),
        (("new", "--tenant", "a", "--keys-file", "keys", "--requests-per-minute", "-1"), "--requests-per-minute: -1"),
        (("new", "--tenant", "a", "--keys-file", "broken"), "line 1 is not a key"),
        (("list", "--keys-file", "absent"), "No such file"),
        (("revoke", "x", "--keys-file", "empty"), "no key x"),
        (("rotate",), "rotate"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(tmp_path: Path, arguments: tuple[str, ...], says: str) -> None:
    broken = tmp_path / "broken"
    broken.write_text("hw-secret\n")
    (tmp_path / "empty").write_text("")
    code, out, error = keys(*arguments, directory=tmp_path)
    assert (code, out) == (2, "")
    assert error.count("\n") == 1, error
    assert says in error
    assert "hw-secret" not in error
    assert broken.read_text() == "hw-secret\n"
