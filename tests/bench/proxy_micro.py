"""CPU of the data plane per small request, at 64 keep-alive clients.

Method: `wrk` (2 threads, 64 connections, a few seconds) against one data-plane process in front of one scripted engine that
answers at once from a raw protocol; CPU time of the processes from /proc/PID/stat, divided by the requests that were
answered. Three set-ups: the engine alone (what wrk and kernel take), the fallback (no control plane), and decisions by a
small control plane in a process of its own. 2,000 different prompts of 200 characters; with the shipped tokenizer where a
control plane says so, and then `prompt_us` is what the data plane itself timed from a body to its block hashes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from random import Random

from tests.ports import is_free
from tests.waiting import wait_until

CONNECTIONS = 64
SECONDS = 3
BODIES = 2_000
_TEXT = "the of and to in is that for it with as was on be at by from this have an or they which one you had not but"
WORDS = _TEXT.split()
PROMPT = r"(?m)^headway_proxy_prompt_seconds_%s ([0-9.e+-]+)$"
TICKS_PER_S = os.sysconf("SC_CLK_TCK")

ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6},
}

ENGINE = """
import asyncio, sys, uvloop
BODY = sys.argv[2].encode()
REPLY = b"HTTP/1.1 200 OK\\r\\ncontent-type: application/json\\r\\ncontent-length: %d\\r\\n\\r\\n%b" % (len(BODY), BODY)
class Engine(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport, self.buffer, self.need = transport, b"", 0
    def data_received(self, data):
        self.buffer += data
        while True:
            end = self.buffer.find(b"\\r\\n\\r\\n")
            if end < 0:
                return
            head = self.buffer[:end].lower()
            size = end + 4 + int(head.split(b"content-length:")[1].split(b"\\r\\n")[0])
            if len(self.buffer) < size:
                return
            self.buffer = self.buffer[size:]
            self.transport.write(REPLY)
async def main():
    server = await asyncio.get_running_loop().create_server(Engine, "127.0.0.1", int(sys.argv[1]), backlog=1024)
    await server.serve_forever()
uvloop.run(main())
"""

SCRIPT = """
local bodies = {%s}
local requests, at = {}, 0
function init()
  for number, body in ipairs(bodies) do
    requests[number] = wrk.format("POST", "/v1/chat/completions", {["Content-Type"] = "application/json"}, body)
  end
end
function request()
  at = at %% #requests + 1
  return requests[at]
end
"""

CONTROL = """
import asyncio, sys, uvloop
from tests.fakes.control import Control
async def main():
    control = await Control.start(sys.argv[1])
    control.serve("m", sys.argv[2], tokenizer=sys.argv[3])
    while True:
        await asyncio.sleep(1)  # what it keeps of each request would be memory without end
        for kept in (control.questions, control.outcomes, control.batches, control.first_bytes):
            kept.clear()
uvloop.run(main())
"""


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def _start(stack: ExitStack, *argv: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, *argv], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    stack.callback(process.wait)
    stack.callback(process.kill)
    return process


def _until_answers(url: str, wanted: str) -> None:
    until = time.monotonic() + 20
    while time.monotonic() < until:
        try:
            with urllib.request.urlopen(url, timeout=1) as answer:
                if wanted in answer.read().decode():
                    return
        except OSError:
            pass
        time.sleep(0.05)  # another process, asked over HTTP
    raise TimeoutError(f"{url} did not say {wanted!r}")


def _bodies(rng: Random) -> list[str]:
    texts = (" ".join(rng.choices(WORDS, k=60)) for _ in range(BODIES))
    return [json.dumps({"model": "m", "messages": [{"role": "user", "content": text}]}) for text in texts]


def _wrk(directory: Path, port: int) -> int:
    """Requests answered."""
    script = directory / "post.lua"
    script.write_text(SCRIPT % ",\n".join(json.dumps(body) for body in _bodies(Random(1))))
    command = ["wrk", "-t2", f"-c{CONNECTIONS}", f"-d{SECONDS}s", "-s", str(script), f"http://127.0.0.1:{port}"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    if "Non-2xx" in text or "Socket errors" in text:
        raise RuntimeError(text)
    found = re.search(r"(\d+) requests in", text)
    assert found is not None, text
    return int(found[1])


def _measure(directory: Path, port: int, *pids: int) -> tuple[int, list[float]]:
    _wrk(directory, port)  # warm
    before = [_cpu_s(pid) for pid in pids]
    requests = _wrk(directory, port)
    return requests, [1e6 * (_cpu_s(pid) - was) / requests for pid, was in zip(pids, before, strict=True)]


def _prompt_us(url: str) -> float:
    """From a body to its block hashes, by the data plane's own clock: the mean of all requests since its start."""
    with urllib.request.urlopen(url, timeout=5) as answer:
        page = answer.read().decode()
    total, count = (float(found[1]) for end in ("sum", "count") if (found := re.search(PROMPT % end, page)))
    return 1e6 * total / count


def run(base_port: int = 18_700) -> dict[str, dict[str, float]]:
    """Prints and returns requests/s and CPU us per request of each set-up; nothing where there is no wrk on the PATH."""
    if shutil.which("wrk") is None:
        print("skipped: wrk is not on the PATH")
        return {}
    results: dict[str, dict[str, float]] = {}
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hw-")))
        engine_port = base_port
        engine = _start(stack, "-c", ENGINE, str(engine_port), json.dumps(ANSWER))
        url = f"http://127.0.0.1:{engine_port}"
        wait_until(lambda: not is_free(engine_port), what="the engine listens")
        requests, (cpu,) = _measure(directory, engine_port, engine.pid)
        results["engine alone"] = {"requests_per_s": requests / SECONDS, "engine_us": cpu}
        for number, (name, tokenizer) in enumerate([("fallback", None), ("control", ""), ("control, tokens", "headway-8k")], 1):
            port = base_port + number
            target, argv, pids = f"unix:{directory}/c{number}.sock", [], []
            if tokenizer is None:
                argv = ["--endpoint", f"m={url}"]
            else:
                pids.append(_start(stack, "-c", CONTROL, target, url, tokenizer).pid)
            proxy = _start(stack, "-m", "dataplane", "--port", str(port), "--control", target, *argv)
            _until_answers(f"http://127.0.0.1:{port}/ready", '"ready":true')
            if tokenizer:
                _until_answers(f"http://127.0.0.1:{port}/ready", '"m":"ready"')
            requests, cpus = _measure(directory, port, proxy.pid, *pids)
            results[name] = {"requests_per_s": requests / SECONDS, "dataplane_us": cpus[0], "control_us": sum(cpus[1:])}
            if tokenizer:
                results[name]["prompt_us"] = _prompt_us(f"http://127.0.0.1:{port}/metrics")
            proxy.kill()
    for name, figures in results.items():
        print(f"{name:18}", "  ".join(f"{key} {value:10.1f}" for key, value in figures.items()))
    return results


if __name__ == "__main__":
    run()
