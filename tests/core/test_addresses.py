"""Addresses as people write them."""

import pytest

from fedloom.core.addresses import DeviceAddress, with_port
from fedloom.core.errors import UsageError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ("", None, None)),
        ("fl.example.org", ("fl.example.org", None, None)),
        ("fl.example.org:443,8443", ("fl.example.org", 443, 8443)),
        ("10.0.0.1:1,65535", ("10.0.0.1", 1, 65535)),
        ("::1", ("::1", None, None)),
        ("[::1]", ("::1", None, None)),
        ("my_host.local.", ("my_host.local.", None, None)),
        ("[2001:db8::7]:443,444", ("2001:db8::7", 443, 444)),
    ],
)
def test_a_host_has_two_ports_or_none(text: str, expected: tuple[str, int | None, int | None]) -> None:
    found = DeviceAddress.parse(text)
    assert (found.host, found.member_port, found.join_port) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("fl.example.org:443", "fl.example.org:", "fl.example.org:443,", "fl.example.org:443,444,445"),
        *("h:0,1", "h:1,65536", "h:a,b", "h:-1,2", "[::1]:443", "[::1", "[::1]443,444", "[h]:1,2", ":1,2"),
        *("::1:443,444", "https://fl.example.org", "a b", "h:443,443", "h\n", "h\t:1,2", "h\0", "user@h", "*.h", "h?x"),
        *("0.0.0.0", "::", "[::]:1,2", "224.0.0.1", "fe80::1%eth0", "[fe80::1%eth0]:1,2", "999.1.1.1", "1.2.3"),
        *("h..x", "-h", "h-", ".", "h.1", "a" * 64, "a." * 127 + "a", "é\udce9.org"),
    ],
)
def test_anything_else_is_refused_with_the_form_expected(text: str) -> None:
    with pytest.raises(UsageError, match=r"expected HOST, or HOST:PORT,PORT"):
        DeviceAddress.parse(text)


def test_ipv6_is_written_in_brackets_before_a_port() -> None:
    written = [with_port(host, 7) for host in ("h", "10.0.0.1", "::1", "[::1]")]
    assert written == ["h:7", "10.0.0.1:7", "[::1]:7", "[::1]:7"]


def test_a_name_beyond_ascii_is_refused_with_the_one_to_write() -> None:
    with pytest.raises(UsageError, match=r"write it as xn--exmple-cua\.org"):
        DeviceAddress.parse("exämple.org:443,444")
