"""`make bench`: every benchmark, printed with its method; `make bench ARGS="index tokens"` for some.

A benchmark is a module of this package with `run() -> None`. Nothing here asserts: the machines that run it differ, so a
figure is read beside its method, and beside the other figures of the same run.
"""

from __future__ import annotations

import importlib
import pkgutil
import platform
import sys

import tests.bench


def main() -> int:
    names = sorted(module.name for module in pkgutil.iter_modules(tests.bench.__path__) if not module.name.startswith("_"))
    asked = sys.argv[1:] or names
    unknown = [name for name in asked if name not in names]
    if unknown:
        print(f"bench: no benchmark {unknown[0]!r}; there are {', '.join(names)}", file=sys.stderr)
        return 2
    print(f"Python {platform.python_version()} on {platform.machine()}, {platform.system()} {platform.release()}")
    for name in asked:
        print(f"\n=== {name} " + "=" * (90 - len(name)), flush=True)
        importlib.import_module(f"tests.bench.{name}").run()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
