"""What goes wrong in the surroundings of a command: one line on stderr and an exit code, never a traceback."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pytest
import redis

from headway.__main__ import dispatch
from headway.embedded_redis import RedisServer
from headway.errors import UsageError
from prediction import dataset
from prediction.errors import DatasetError
from tests.fakes.sse_server import Reply, Request, complete, in_thread
from tests.trainer.traffic import outcomes

pytestmark = pytest.mark.usefixtures("own_home")


def headway(*argv: str, out: str = "") -> subprocess.CompletedProcess[str]:
    """out: a device in place of a captured stdout."""
    line = [sys.executable, "-m", "headway", *argv]
    if not out:
        return subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)
    with open(out, "w") as file:
        return subprocess.run(line, stdout=file, stderr=subprocess.PIPE, text=True, timeout=120, check=False)


def only_line(done: subprocess.CompletedProcess[str], code: int) -> str:
    assert done.returncode == code, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


def test_an_output_that_takes_nothing_is_one_line() -> None:
    assert only_line(headway("help", out="/dev/full"), 2) == "headway: No space left on device"


@pytest.mark.parametrize("option", ["--json", "--plot"])
def test_figures_that_cannot_be_written_name_their_file(option: str, tmp_path: Path) -> None:
    (tmp_path / "full.svg").symlink_to("/dev/full")
    line = ("simulate", "--limit", "5", "--policies", "random", option, str(tmp_path / "full.svg"))
    assert only_line(headway(*line), 2).endswith(f"{tmp_path}/full.svg: No space left on device")


def test_a_picture_is_named_what_it_is() -> None:
    with pytest.raises(UsageError, match=r"x\.png: it will be an SVG"):
        dispatch(["simulate", "--plot", "x.png"])


def test_what_a_library_says_in_many_lines_is_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # transformers' reason why it cannot load has two lines
    done = headway("replay", "--limit", "1", "--tokenizer", str(tmp_path))
    assert "--tokenizer" in only_line(done, 2)


def samples(directory: Path) -> pa.Table:
    table = dataset.from_outcomes(outcomes(400, 6))
    dataset.write(table, directory / "data.parquet")
    return table


def test_rows_that_a_profile_wrote_in_two_formats_are_counted_once(tmp_path: Path) -> None:
    table = samples(tmp_path)
    pyarrow.csv.write_csv(table, tmp_path / "data.csv")
    assert len(dataset.read(tmp_path)) == len(dataset.read(tmp_path / "data.parquet"))
    shutil.copy(tmp_path / "data.parquet", tmp_path / "more.parquet")
    assert len(dataset.read(tmp_path)) == 2 * len(dataset.read(tmp_path / "data.parquet"))


def test_a_report_needs_a_directory(tmp_path: Path) -> None:
    samples(tmp_path)
    with pytest.raises(UsageError, match=r"--out: /dev/null is no directory"):
        dispatch(["analyze", str(tmp_path), "--out", "/dev/null"])


def test_the_bus_of_a_profile_is_asked_with_its_password(
    own_redis: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with redis.Redis.from_url(own_redis.url) as direct:
        direct.config_set("requirepass", "secret")
    line = ["profile", "--url", "http://127.0.0.1:1", "--redis-url", own_redis.url, "--run-dir", str(tmp_path / "p")]
    with in_thread(complete) as server:
        line[2] = server.url
        with pytest.raises(UsageError, match="authenticat"):
            dispatch(line)
        monkeypatch.setenv("REDIS_PASSWORD", "secret")
        with pytest.raises(UsageError, match="no worker is registered in the fleet's Redis"):
            dispatch(line)


async def routed(request: Request, reply: Reply) -> bool:
    return await complete(request, reply, headers={"x-headway-worker": "w1"})


def test_a_record_that_cannot_be_written_costs_no_figures(capsys: pytest.CaptureFixture[str]) -> None:
    with in_thread(routed) as server:
        line = ["replay", "--url", server.url, "--limit", "3", "--rate", "100", "--out", "/dev/full"]
        assert dispatch(line) == 1
    said = capsys.readouterr()
    assert "3 ok, 0 failed" in said.out
    assert said.err.splitlines()[-1] == "replay: /dev/full is not whole: No space left on device"


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/dev/zero", "no file"),
        ("/" + "x" * 300, "File name too long"),
        ("/x\0y", "no such file"),
        ("/dev/null/x", "Not a dir"),
    ],
)
def test_a_data_set_that_is_no_file_is_told(path: str, says: str) -> None:
    with pytest.raises(DatasetError, match=says):
        dataset.read(path)


def test_who_listens_and_is_no_control_plane_is_not_called_absent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        target = f"127.0.0.1:{deaf.getsockname()[1]}"
        with pytest.raises(UsageError, match=f"who listens at {target} does not answer as a control plane .*--control-ca"):
            dispatch(["workers", "--control", target])


def test_a_certificate_that_is_none_is_one_line(tmp_path: Path, free_port: int) -> None:
    (tmp_path / "ca.crt").write_text("no certificate\n")
    done = headway("workers", "--control", f"127.0.0.1:{free_port}", "--control-ca", str(tmp_path / "ca.crt"))
    assert f"127.0.0.1:{free_port}" in only_line(done, 2)
