"""`headway attach URL`: one more vLLM server for a fleet that runs, for as long as the command does.

It is a worker agent with the addresses filled in: of the stack that was started here, or of another one's Redis.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from urllib.parse import urlsplit

import grpc

from headway import runfile
from headway.control_client import CALL_TIMEOUT_S, add_control_argument, call
from headway.errors import UsageError
from proto import fleet_pb2, fleet_pb2_grpc

PASSED_ON = ("tokenizer", "advertise_url", "kv_events", "kv_replay", "engine_ca", "accelerator")
"""Settings of the agent that may be given here."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", help="base URL of a vLLM server, such as http://gpu-3:8000")
    parser.add_argument("--worker", default="", help="its name in the fleet (default: made of the URL: gpu-3-8000)")
    parser.add_argument(
        "--redis-url",
        default="",
        help="the fleet's Redis (default: that of the stack started here; its password: REDIS_PASSWORD)",
    )
    parser.add_argument("--tokenizer", default="", help="path or hub name (default: the model path that the server reports)")
    parser.add_argument("--advertise-url", default="", help="how data planes reach it, if not by URL")
    parser.add_argument("--kv-events", default="", help="tcp://host:port, off, or auto: ask the server (default)")
    parser.add_argument("--kv-replay", default="", help="the same, where events are replayed")
    parser.add_argument("--engine-ca", default="", help="authority of an https:// server (default: the system's)")
    parser.add_argument("--accelerator", default="", help="kind of accelerator, for the routers' models")
    add_control_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Does not return: the process becomes the agent. UsageError: no Redis is known, or the fleet has a worker of that name."""
    url = args.url.rstrip("/")
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise UsageError(f"attach: {args.url!r} is not a base URL such as http://gpu-3:8000")
    worker = args.worker or name_of(url)
    _check_name(args, worker)
    given = [("worker", worker), ("engine_url", url)]
    given += [(name, getattr(args, name)) for name in PASSED_ON if getattr(args, name)]
    flags = [part for name, value in given for part in (f"--{name.replace('_', '-')}", value)]
    # The bus by the environment: a password in it is not for the list of processes, which everybody reads.
    environment = {name: value for name, value in os.environ.items() if name != runfile.PASSWORD_VARIABLE}
    environment["HEADWAY_WORKER_AGENT_REDIS_URL"] = _redis_url(args.redis_url)
    os.execve(sys.executable, [sys.executable, "-m", "worker_agent", *flags], environment)


def name_of(url: str) -> str:
    """http://gpu-3:8000 -> gpu-3-8000."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", urlsplit(url).netloc.rpartition("@")[2]).strip("-")


def _redis_url(given: str) -> str:
    try:
        url = runfile.redis_url(given)
    except ValueError as error:
        raise UsageError(f"attach: {error}") from None
    if not url:
        raise UsageError("attach: no stack was started here: name the fleet's Redis with --redis-url")
    return url


def _check_name(args: argparse.Namespace, worker: str) -> None:
    """Where a control plane can be asked. UsageError."""
    try:
        reply = call(args, _workers)
    except UsageError:
        return  # the agent finds out by itself, and says so in its log
    if any(status.worker == worker and status.alive for status in reply.workers):
        raise UsageError(f"attach: there is a worker {worker} already: give --worker another name")


def _workers(channel: grpc.Channel) -> fleet_pb2.WorkerList:
    return fleet_pb2_grpc.FleetStub(channel).ListWorkers(fleet_pb2.ListWorkersRequest(), timeout=CALL_TIMEOUT_S)
