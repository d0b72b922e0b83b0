"""Settings: a typing mistake is an error, never a default."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from runtime.settings import SettingsError, check_port, parse, read, setting


@dataclass(frozen=True)
class Example:
    port: int = setting(8000, "where to listen")
    policy: str = setting("lmetric", "policy", env="ROUTING_STRATEGY", choices=("lmetric", "random"))
    workers: tuple[str, ...] = setting((), "base URLs")
    verbose: bool = setting(False, "say more")
    bound_s: float | None = setting(None, "a bound")
    password: str = setting("", "of Redis", secret=True)

    def check(self) -> None:
        check_port("port", self.port)


def parsed(*argv: str, **environ: str) -> Example:
    return parse(Example, "example", argv, environ)


def test_defaults_hold_where_nothing_is_said() -> None:
    assert parsed() == Example()


def test_a_flag_wins_over_the_environment() -> None:
    assert parsed("--port", "9000", HEADWAY_EXAMPLE_PORT="9001").port == 9000
    assert parsed(HEADWAY_EXAMPLE_PORT="9001").port == 9001


def test_a_field_may_have_a_public_variable() -> None:
    assert parsed(ROUTING_STRATEGY="random").policy == "random"


def test_lists_come_repeated_or_separated_by_commas() -> None:
    assert parsed("--workers", "a,b", "--workers", "c").workers == ("a", "b", "c")
    assert parsed(HEADWAY_EXAMPLE_WORKERS="a, b").workers == ("a", "b")


def test_booleans_and_optionals_are_read() -> None:
    assert parsed("--verbose").verbose
    assert not parsed("--no-verbose", HEADWAY_EXAMPLE_VERBOSE="yes").verbose
    assert parsed("--bound-s", "1.5").bound_s == 1.5


def test_what_kubernetes_sets_for_a_service_of_our_name_is_nobody_s_setting() -> None:
    links = {
        "SERVICE_HOST": "10.0.0.1",
        "SERVICE_PORT": "8000",
        "SERVICE_PORT_HTTP": "8000",
        "PORT": "tcp://10.0.0.1:8000",
        "PORT_8000_TCP": "tcp://10.0.0.1:8000",
        "PORT_8000_TCP_PROTO": "tcp",
        "PORT_8000_TCP_PORT": "8000",
        "PORT_8000_TCP_ADDR": "10.0.0.1",
    }
    assert parsed(**{f"HEADWAY_EXAMPLE_{name}": value for name, value in links.items()}) == Example()
    for mistake in ({"HEADWAY_EXAMPLE_PORT": "tcp"}, {"HEADWAY_EXAMPLE_SERVICE": "a"}, {"HEADWAY_EXAMPLE_PORT_8000": "1"}):
        with pytest.raises(SettingsError):
            parsed(**mistake)


def test_a_secret_comes_from_the_environment_only() -> None:
    assert parsed(HEADWAY_EXAMPLE_PASSWORD="s").password == "s"


@pytest.mark.parametrize("argv", [("--password", "hush"), ("--password=hush",)])
def test_a_secret_on_the_command_line_is_refused_and_not_said_again(argv: tuple[str, ...]) -> None:
    with pytest.raises(SettingsError, match=r"--password is no flag.*: set HEADWAY_EXAMPLE_PASSWORD") as refused:
        parsed(*argv)
    assert "hush" not in str(refused.value)


@pytest.mark.parametrize(
    ("argv", "environ", "says"),
    [
        (("--prot", "1"), {}, "--prot"),
        (("--port", "many"), {}, "'many' is not a whole number"),
        (("--port", "70000"), {}, "70000 is not a TCP port"),
        (("--port", "1", "--port", "2"), {}, "given 2 times"),
        (("--policy", "best"), {}, "not one of lmetric, random"),
        ((), {"ROUTING_STRATEGY": "best"}, "not one of lmetric, random"),
        ((), {"HEADWAY_EXAMPLE_PROT": "1"}, "variable HEADWAY_EXAMPLE_PROT; did you mean HEADWAY_EXAMPLE_PORT"),
        ((), {"HEADWAY_EXAMPLE_VERBOSE": "perhaps"}, "'perhaps' is not true or false"),
    ],
)
def test_a_mistake_is_named(argv: tuple[str, ...], environ: dict[str, str], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        parsed(*argv, **environ)


def test_a_mistake_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        read(Example, "example", ["--port", "x"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
