"""One frozen dataclass per process, read once from flags and environment.

A field becomes `--http-port` on the command line and `HEADWAY_<PROCESS>_HTTP_PORT` in the environment (flag wins). A field may
name one more variable (`env="ROUTING_STRATEGY"`). A variable that begins with the process's prefix and names no field is an
error, as is an unknown flag: a typing mistake must not become a default. `check()` on the dataclass raises ValueError for
values that make no sense together. All errors are one line on stderr and exit code 2.

    @dataclass(frozen=True)
    class Settings:
        http_port: int = setting(8000, "port of the OpenAI API")
        policy: str = setting("lmetric", "routing policy at start", env="ROUTING_STRATEGY", choices=("lmetric", ...))
        workers: tuple[str, ...] = setting((), "base URLs")       # repeated or comma-separated

        def check(self) -> None: ...

    settings = read(Settings, "dataplane", argv)
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import os
import re
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")


class SettingsError(ValueError):
    """One sentence in the words of whoever set the value."""


def setting(
    default: Any, help: str, *, env: str | None = None, choices: Sequence[str] | None = None, secret: bool = False
) -> Any:
    """A field of a settings dataclass. secret: environment only, since command lines are public on a machine."""
    return dataclasses.field(default=default, metadata={"help": help, "env": env, "choices": choices, "secret": secret})


def env_prefix(process: str) -> str:
    return f"HEADWAY_{process.upper().replace('-', '_')}_"


_SERVICE_LINK = re.compile(r"SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?")
_LINKED_PORT = re.compile(r"(tcp|udp|sctp)://")


def _is_service_link(name: str, value: str) -> bool:
    """Set by Kubernetes in every pod beside a Service of this process's name, not by a person. name: without the prefix.

    A Service called headway-dataplane makes HEADWAY_DATAPLANE_PORT=tcp://10.0.0.1:8000, and seven more of the kind.
    """
    return bool(_SERVICE_LINK.fullmatch(name) or (name == "PORT" and _LINKED_PORT.match(value)))


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _convert(text: str, kind: Any, source: str) -> Any:
    """Text to the field's type: bool, int, float, str, an optional of these, or a tuple of str."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        options = [option for option in typing.get_args(kind) if option is not type(None)]
        return None if text == "" else _convert(text, options[0], source)
    if typing.get_origin(kind) is tuple:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    try:
        if kind is bool:
            lowered = text.lower()
            if lowered in ("1", "true", "yes", "on"):
                return True
            if lowered in ("0", "false", "no", "off"):
                return False
            raise ValueError(text)
        return kind(text)
    except ValueError:
        names = {int: "a whole number", float: "a number", bool: "true or false"}
        raise SettingsError(f"{source}: {text!r} is not {names.get(kind, kind)}") from None


def parse(cls: type[T], process: str, argv: Sequence[str], environ: Mapping[str, str]) -> T:
    """SettingsError: unknown flag or variable, a value of the wrong kind, or one that `check()` refuses."""
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    prefix = env_prefix(process)
    environ = {
        name: value
        for name, value in environ.items()
        if not (name.startswith(prefix) and _is_service_link(name.removeprefix(prefix), value))
    }

    parser = _Parser(prog=f"python -m {process}", description=(cls.__doc__ or "").strip() or None, allow_abbrev=False)
    for name, field in fields.items():
        variable = field.metadata.get("env") or prefix + name.upper()
        if field.metadata.get("secret"):
            if any(argument.partition("=")[0] == _flag(name) for argument in argv):  # and its value is in no message
                raise SettingsError(
                    f"{_flag(name)} is no flag, since all users of a machine see its command lines: set {variable}"
                )
            continue
        text = f"{field.metadata.get('help', '')} (default: {field.default!r}; {variable})".replace("%", "%%")
        if hints[name] is bool:
            parser.add_argument(_flag(name), dest=name, action=argparse.BooleanOptionalAction, default=None, help=text)
        else:
            parser.add_argument(_flag(name), dest=name, action="append", default=None, help=text, metavar=name.upper())
    given = vars(parser.parse_args(list(argv)))

    values: dict[str, Any] = {}
    known: set[str] = set()
    for name, field in fields.items():
        variables = [prefix + name.upper()]
        if field.metadata.get("env"):
            variables.append(field.metadata["env"])
        known.update(variables)
        is_tuple = typing.get_origin(hints[name]) is tuple
        for variable in reversed(variables):
            if variable in environ:
                values[name] = _convert(environ[variable], hints[name], variable)
        flag = given.get(name)
        if isinstance(flag, bool):
            values[name] = flag
        elif flag is not None:
            if len(flag) > 1 and not is_tuple:
                raise SettingsError(f"{_flag(name)}: given {len(flag)} times")
            values[name] = _convert(",".join(flag), hints[name], _flag(name))
        choices = field.metadata.get("choices")
        if choices and name in values and values[name] not in choices:
            raise SettingsError(f"{_flag(name)}: {values[name]!r} is not one of {', '.join(choices)}")

    unknown = sorted(variable for variable in environ if variable.startswith(prefix) and variable not in known)
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, n=1)
        known_ones = f"did you mean {near[0]}?" if near else f"{process} knows {', '.join(sorted(known))}"
        raise SettingsError(f"unknown environment variable {unknown[0]}; {known_ones}")

    settings = cls(**values)
    check = getattr(settings, "check", None)
    if check is not None:
        try:
            check()
        except SettingsError:
            raise
        except ValueError as error:
            raise SettingsError(str(error)) from error
    return settings


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SettingsError(message)


def read(cls: type[T], process: str, argv: Sequence[str] | None = None) -> T:
    """`parse` over the real command line and environment; an error is one line on stderr and exit code 2."""
    try:
        return parse(cls, process, sys.argv[1:] if argv is None else argv, os.environ)
    except SettingsError as error:
        fail(process, str(error))


def fail(process: str, message: str) -> NoReturn:
    """One line on stderr, exit code 2: the caller's mistake, in the caller's terms."""
    print(f"{process}: {message}", file=sys.stderr)
    raise SystemExit(2)


def check_port(name: str, port: int) -> None:
    """ValueError: not a TCP port (0 asks the system for a free one)."""
    if not 0 <= port <= 65_535:
        raise ValueError(f"{_flag(name)}: {port} is not a TCP port")


def check_positive(**values: float) -> None:
    """ValueError: one of them is not above zero."""
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{_flag(name)}: {value} must be above 0")
