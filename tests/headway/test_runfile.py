"""What a stack wrote down holds while its process lives, and for no other that has its number later."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from headway import runfile
from headway.__main__ import dispatch
from headway.errors import UsageError


def test_a_stack_is_found_while_its_process_lives(own_home: Path) -> None:
    assert runfile.read() is None
    runfile.write(pid=os.getpid(), url="http://127.0.0.1:1")
    facts = runfile.read()
    assert facts is not None
    assert (facts["pid"], facts["url"]) == (os.getpid(), "http://127.0.0.1:1")
    runfile.remove(os.getpid() + 1)
    assert runfile.read() == facts
    runfile.remove(os.getpid())
    assert runfile.read() is None


def test_a_process_that_got_the_number_of_a_stack_is_left_alone(own_home: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as bystander:
        runfile.write(pid=bystander.pid, url="http://127.0.0.1:1")
        path = runfile.directory() / "run.json"
        facts = json.loads(path.read_text())
        path.write_text(json.dumps(facts | {"pid_started": facts["pid_started"] - 1}))
        with pytest.raises(UsageError, match="no stack is running here"):
            dispatch(["down"])
        assert bystander.poll() is None
        bystander.communicate(b"\n")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"pid": "x"}', '{"pid": 99999999}', '{"pid": null}', '{"pid": -1}', '{"pid": 0}']
)
def test_a_file_that_makes_no_sense_is_no_stack(text: str, own_home: Path) -> None:
    runfile.directory().mkdir(parents=True, exist_ok=True)
    (runfile.directory() / "run.json").write_text(text)
    assert runfile.read() is None


@pytest.mark.parametrize(("embedded", "url"), [(True, "unix:///r.sock"), (False, "unix://:secret@/r.sock")])
def test_the_password_of_redis_is_for_one_that_was_there_before(
    embedded: bool, url: str, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_PASSWORD", "secret")
    runfile.write(pid=os.getpid(), redis_url="unix:///r.sock", redis_embedded=embedded)
    assert runfile.redis_url("") == url
    assert runfile.redis_url("redis://other/0") == "redis://:secret@other/0"
