"""Host rules: what may be written, what each allows, and the spellings that are none."""

from __future__ import annotations

import pytest

from workflows.specs.hosts import HostRule, host_name, host_rule, is_address

ALLOWS = [
    # rule, host, port, allowed
    ("example.org", "example.org", 443, True),
    ("example.org", "example.org", 5432, True),
    ("Example.ORG.", "example.org", 80, True),
    ("example.org", "www.example.org", 443, False),
    ("example.org", "notexample.org", 443, False),
    ("example.org:443", "example.org", 443, True),
    ("example.org:443", "example.org", 80, False),
    ("*.example.org", "a.example.org", 80, True),
    ("*.example.org", "a.b.example.org", 80, True),
    ("*.example.org", "example.org", 80, False),
    ("*.example.org", "badexample.org", 80, False),
    ("*.example.org:22", "git.example.org", 22, True),
    ("*.example.org:22", "git.example.org", 443, False),
    ("192.0.2.7", "192.0.2.7", 22, True),
    ("192.0.2.7:22", "192.0.2.7", 23, False),
    ("2001:DB8::1", "2001:db8::1", 443, True),
    ("[2001:db8:0::1]:443", "2001:db8::1", 443, True),
    ("_dmarc.example.org", "_dmarc.example.org", 80, True),
    ("localhost", "localhost", 80, True),
]

REFUSED = [
    "", "*", "*:443", "*.", "*.org", "a*.example.org", "*.*.example.org", "example.*", "https://example.org",
    "example.org/path", "user@example.org", "example.org:0", "example.org:65536", "example.org:https", "example.org:",
    "exa mple.org", "exämple.org", "-example.org", "example..org", ".example.org", "a" * 64 + ".org",
    "127.1", "0x7f000001", "2130706433", "017700000001", "127.0.0.01", "1.2.3.4.5", "0x7f.1", "*.192.0.2.7",
    "fe80::1%eth0", "[fe80::1%1]:80", "[::1", "example.org\n.evil.org", "exa\tmple.org", "1.2.3.4:080",
]  # fmt: skip


@pytest.mark.parametrize(("rule", "host", "port", "allowed"), ALLOWS)
def test_a_rule_allows_what_it_names_and_nothing_else(rule: str, host: str, port: int, *, allowed: bool) -> None:
    assert host_rule(rule).allows(host, port) is allowed


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_no_rule_is_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(ValueError, match=r"^(is|has|holds|may|would) "):
        host_rule(text)


@pytest.mark.parametrize("rule", [rule for rule, *_ in ALLOWS])
def test_a_rule_is_written_as_it_is_read(rule: str) -> None:
    read = host_rule(rule)
    assert host_rule(str(read)) == read


def test_addresses_are_told_from_names() -> None:
    assert [is_address(host_name(each)) for each in ("192.0.2.7", "::FFFF:1.2.3.4", "1.example.org", "example")] == [
        True,
        True,
        False,
        False,
    ]
    assert host_rule("::ffff:127.0.0.1") == HostRule("::ffff:7f00:1")
