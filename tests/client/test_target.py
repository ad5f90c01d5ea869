"""How a person names a share and a path in it."""

from __future__ import annotations

import os
import traceback

import pytest

from headrace.client.target import Target, parse_code
from headrace.errors import UsageError
from headrace.protocol.codes import Code
from headrace.protocol.paths import ROOT, RelPath

CODE = Code.parse("5n8p-w3rf-6tyz")
SECRETS = ("w3rf", "6tyz", "w3rf6tyz", "W3RF")


def path(*names: str) -> RelPath:
    return RelPath(tuple(os.fsencode(name) for name in names))


@pytest.mark.parametrize(
    ("text", "target"),
    [
        # CODE@HOST:PORT[/path]
        ("5n8p-w3rf-6tyz@192.168.1.20:7420", Target("192.168.1.20", 7420, ROOT, CODE)),
        ("5n8p-w3rf-6tyz@192.168.1.20:7420/footage", Target("192.168.1.20", 7420, path("footage"), CODE)),
        ("5n8p-w3rf-6tyz@192.168.1.20:7420/day1/a.mov", Target("192.168.1.20", 7420, path("day1", "a.mov"), CODE)),
        ("5n8p-w3rf-6tyz@nas.example.org:1", Target("nas.example.org", 1, ROOT, CODE)),
        ("5n8p-w3rf-6tyz@nas:65535/", Target("nas", 65535, ROOT, CODE)),
        # without a port
        ("5n8p-w3rf-6tyz@192.168.1.20", Target("192.168.1.20", 7420, ROOT, CODE)),
        ("5n8p-w3rf-6tyz@nas/footage", Target("nas", 7420, path("footage"), CODE)),
        ("5n8p-w3rf-6tyz@nas:/footage", Target("nas", 7420, path("footage"), CODE)),
        ("5n8p-w3rf-6tyz@[::1]", Target("::1", 7420, ROOT, CODE)),
        ("nas.local", Target("nas.local", 7420)),
        ("192.168.1.20/footage", Target("192.168.1.20", 7420, path("footage"))),
        ("nas:/footage", Target("nas", 7420, path("footage"))),
        # CODE[/path]
        ("5n8p-w3rf-6tyz", Target("", 7420, ROOT, CODE)),
        ("5n8p-w3rf-6tyz/footage/day1", Target("", 7420, path("footage", "day1"), CODE)),
        ("5N8PW3RF6TYZ", Target("", 7420, ROOT, CODE)),
        ("5n8p w3rf 6tyz", Target("", 7420, ROOT, CODE)),
        ("5N8P-W3RF-6TYZ/a@b:c", Target("", 7420, path("a@b:c"), CODE)),
        # HOST:PORT[/path]
        ("192.168.1.20:7421", Target("192.168.1.20", 7421)),
        ("nas:7421/footage", Target("nas", 7421, path("footage"))),
        ("@nas:7421", Target("nas", 7421)),
        # IPv6
        ("5n8p-w3rf-6tyz@[::1]:7421/footage", Target("::1", 7421, path("footage"), CODE)),
        ("[2001:db8::7]:7421", Target("2001:db8::7", 7421)),
        ("[fe80::1%eth0]:7421", Target("fe80::1%eth0", 7421)),
        ("[::1]/footage", Target("::1", 7420, path("footage"))),
        ("[::1]:/footage", Target("::1", 7420, path("footage"))),
        # the URL form
        ("headrace://5n8p-w3rf-6tyz@192.168.1.20:7421/footage", Target("192.168.1.20", 7421, path("footage"), CODE)),
        ("headrace://5n8p-w3rf-6tyz@[::1]:7421", Target("::1", 7421, ROOT, CODE)),
        ("headrace://5n8p-w3rf-6tyz@nas/a%20b%2525/%C3%A9", Target("nas", 7420, path("a b%25", "é"), CODE)),
        ("headrace://nas:7421/%ff%0a", Target("nas", 7421, RelPath((b"\xff\n",)))),
        ("headrace://nas:7421/a?b#c", Target("nas", 7421, path("a?b#c"))),
        ("headrace://5n8p-w3rf-6tyz/footage", Target("", 7420, path("footage"), CODE)),
    ],
)
def test_every_form(text: str, target: Target) -> None:
    assert Target.parse(text) == target


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("nas:1/a%20b", path("a%20b")),  # only URLs are encoded
        ("nas:1//a///b/./c/", path("a", "b", "c")),
        ("nas:1/é ü", path("é ü")),
        (os.fsdecode(b"nas:1/\xff"), RelPath((b"\xff",))),
        ("nas:1/a@b:c", path("a@b:c")),
        ("nas:1/headrace://x", path("headrace:", "x")),
        ("nas:1/..a/b..", path("..a", "b..")),
    ],
)
def test_paths(text: str, wanted: RelPath) -> None:
    assert Target.parse(text).path == wanted


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/footage",
        "nas",
        "@",
        "@/footage",
        "5n8p-w3rf-6tyz@",
        "5n8p-w3rf-6tyz@:7420",
        "5n8p-w3rf-6tyz@nas:0",
        "5n8p-w3rf-6tyz@nas:65536",
        "5n8p-w3rf-6tyz@nas:-1",
        "5n8p-w3rf-6tyz@nas:+1",
        "5n8p-w3rf-6tyz@nas: 1",
        "5n8p-w3rf-6tyz@nas:7_4",
        "5n8p-w3rf-6tyz@nas:https",
        "5n8p-w3rf-6tyz@nas:٧",
        "5n8p-w3rf-6tyz@nas:" + "9" * 5000,
        "5n8p-w3rf-6tyz@nas:1:2",
        "5n8p-w3rf-6tyz@::1",
        "5n8p-w3rf-6tyz@::1:7420",
        "5n8p-w3rf-6tyz@[::1",
        "5n8p-w3rf-6tyz@[::1]7420",
        "5n8p-w3rf-6tyz@[]:7420",
        "5n8p-w3rf-6tyz@nas:7420/..",
        "5n8p-w3rf-6tyz@nas:7420/a/../../b",
        "5n8p-w3rf-6tyz@nas:7420/" + "x" * 256,
        "5n8p-w3rf-6tyz@nas:7420/a\0b",
        "headrace://5n8p-w3rf-6tyz@nas:7420/%2e%2e/%2E%2E",
        "headrace://5n8p-w3rf-6tyz@nas:7420/a%00b",
        "headrace://",
        "5n8p-w3rf-6tyu@nas:7420",
        "5n8p-w3rf-6tyz!@nas:7420",
        "5n8p-w3r@nas:7420",
        "5n8p@nas:7420",
        "a@5n8p-w3rf-6tyz@nas:7420",
        "5n8p-w3rf-6tyz" + "x" * 100 + "@nas:7420",
    ],
)
def test_what_is_no_target_is_a_usage_error_that_repeats_no_code(text: str) -> None:
    with pytest.raises(UsageError) as refusal:
        Target.parse(text)
    assert refusal.value.exit_code == 2
    assert refusal.value.hint
    shown = str(refusal.value) + repr(refusal.value) + "".join(traceback.format_exception_only(refusal.value))
    for secret in SECRETS:
        assert secret not in shown


def test_a_word_without_a_dot_or_a_port_is_a_code_never_a_host() -> None:
    """`localhost` happens to be one; an address has a port, a dot, or brackets, or a code before it."""
    target = Target.parse("localhost/footage")
    assert target.host == ""
    assert target.code == Code.parse("10ca-1h0st")


def test_an_encoded_slash_is_a_separator() -> None:
    """No name can hold one."""
    assert Target.parse("headrace://nas:1/a%2Fb").path == path("a", "b")


def test_the_address_for_messages_holds_no_code() -> None:
    assert Target.parse("5n8p-w3rf-6tyz@nas:1/footage").address == "nas:1"
    assert Target.parse("5n8p-w3rf-6tyz@[::1]").address == "[::1]:7420"


def test_a_repr_holds_no_secret() -> None:
    shown = repr(Target.parse("5n8p-w3rf-6tyz@nas:1/footage"))
    assert "5n8p" in shown
    for secret in SECRETS:
        assert secret not in shown


def test_a_code_by_itself() -> None:
    assert parse_code(" 5N8P w3rf-6tyz\n") == CODE
    with pytest.raises(UsageError) as refusal:
        parse_code("5n8p-w3rf-6tyu")
    for secret in SECRETS:
        assert secret not in str(refusal.value)
