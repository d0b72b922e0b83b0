"""`headway COMMAND ...`: finds the command's module, turns every expected error into one line and an exit code.

Exit codes: 0 done; 1 it ran and something failed; 2 the command line or its surroundings are wrong; 130 interrupted, 143
told to end.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import importlib
import os
import signal
import sys
from typing import NoReturn

from headway.errors import UsageError, said

# name -> (module with add_arguments(parser) and run(args) -> int, what it does)
COMMANDS: dict[str, tuple[str, str]] = {
    "up": ("headway.up", "start a whole stack on this machine: Redis, control plane, data plane, emulated workers"),
    "down": ("headway.down", "end the stack that `up` started here"),
    "workers": ("headway.workers", "the fleet as the control plane sees it"),
    "attach": ("headway.attach", "one more vLLM server for a running fleet, until Ctrl-C"),
    "policy": ("headway.policy", "show or switch the routing policy"),
    "drain": ("headway.drain", "no new requests for a worker (--undo: again)"),
    "keys": ("headway.keys", "make, list and revoke callers' API keys"),
    "explain": ("headway.explain", "why a request went where it went"),
    "replay": ("headway.replay", "send a recorded workload through the proxy, open loop"),
    "train": ("headway.train", "train a model of TTFT, from a file or from the running stack's traffic"),
    "models": ("headway.models", "the models of TTFT: list, show, promote, rollback, evaluate"),
    "simulate": ("headway.simulate", "compare policies on a trace in virtual time"),
    "profile": ("headway.profile", "sweep a fleet from idle to overload: a data set to learn TTFT from"),
    "analyze": ("headway.analyze", "a profile's states, zones and knee, as figures and a report"),
    "bench": ("headway.bench", "what the router costs, beside other routers"),
    "demo": ("headway.demo", "a tour: up, two conversations, what went where and why, down"),
}

STARTS_OTHERS = frozenset(("up", "demo", "bench", "attach"))
"""Their children's logs shall have everything."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (try: {self.prog} --help)")


def _overview() -> str:
    lines = ["usage: headway COMMAND [options]", "", "commands:"]
    lines += [f"  {name:<10} {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join([*lines, "", "headway COMMAND --help says more; headway --version."])


def _meant(name: str) -> str:
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def dispatch(argv: list[str]) -> int:
    """Runs one command. UsageError: no such command, or arguments that do not fit."""
    if argv[:1] == ["help"] and len(argv) > 1:
        argv = [argv[1], "--help"]
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    name = argv[0]
    if name == "--version":
        from runtime.about import version  # which imports what no other command needs

        print(f"headway {version()}")
        return 0
    if name not in COMMANDS:
        raise UsageError(f"no command {name!r}{_meant(name)}; there are {', '.join(COMMANDS)}")
    if name in STARTS_OTHERS:  # gRPC's fork handlers now and then abort a child of a process that asks about health at the time
        os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
    else:
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what it says of a bad certificate in five lines is one sentence here
    module_name, text = COMMANDS[name]
    module = importlib.import_module(module_name)
    parser = _Parser(prog=f"headway {name}", description=text, allow_abbrev=False)
    module.add_arguments(parser)
    result: int = module.run(parser.parse_args(argv[1:]))
    return result


def _told_to_end(number: int, _frame: object) -> NoReturn:
    """As an interrupt, so that a command ends what it has started. Those that run a loop have handlers of their own."""
    raise SystemExit(128 + number)


def main() -> None:
    signal.signal(signal.SIGTERM, _told_to_end)
    try:
        code = dispatch(sys.argv[1:])
        sys.stdout.flush()
    except UsageError as error:
        code = _complain(str(error))
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:  # `headway workers | head`
        sys.stderr.close()
        code = 0
    except OSError as error:  # a full disk, a file that may not be read: nothing that a traceback says better
        code = _complain(said(error))
    raise SystemExit(code)


def _complain(why: str) -> int:
    """One line, whatever a library has to say."""
    print("headway:", " ".join(why.split()), file=sys.stderr)
    with contextlib.suppress(OSError):
        sys.stdout.close()  # what cannot be written is not tried once more at the end
    return 2


if __name__ == "__main__":
    main()
