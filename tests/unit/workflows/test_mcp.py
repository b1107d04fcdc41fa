"""Which MCP servers of a manifest its machine does not reach."""

from __future__ import annotations

import pytest

from workflows.specs import mcp
from workflows.specs.wire import NetworkMode, NetworkPolicy

REACHES = [
    # mode, rules, URL, words of the warning; none where it may be reached
    ("isolated", [], "https://mcp.example.org/sse", "the machine's network is isolated"),
    ("isolated", ["mcp.example.org"], "https://mcp.example.org/sse", "the machine's network is isolated"),
    ("isolated", [], "http://localhost:3000/", None),
    ("isolated", [], "${URL}", None),
    ("outbound", ["mcp.example.org"], "https://MCP.example.org/sse", None),
    ("outbound", ["*.example.org:443"], "https://mcp.example.org/sse", None),
    ("outbound", ["*.example.org:443"], "http://mcp.example.org/sse", "add 'mcp.example.org'"),
    ("outbound", ["mcp.example.org:8080"], "http://mcp.example.org:8080/", None),
    ("outbound", [], "wss://mcp.example.org/", "add 'mcp.example.org'"),
    ("outbound", [], "https://${HOST}/sse", None),
    ("outbound", [], "https://127.1/sse", "its host is none that a rule can name"),
    ("outbound", ["https://no.rule"], "https://mcp.example.org/", "add 'mcp.example.org'"),
    ("full", [], "https://mcp.example.org/", None),
]


@pytest.mark.parametrize(("mode", "rules", "url", "words"), REACHES)
def test_a_server_out_of_reach_is_told(mode: str, rules: list[str], url: str, words: str | None) -> None:
    config = {"mcpServers": {"a": {"type": "http", "url": url}}}
    policy = NetworkPolicy(mode=NetworkMode(mode), hosts=rules)
    told = list(mcp.warnings(config, {"URL", "HOST"}, "m", policy))
    assert [fault.field for fault in told] == (["m.mcpServers.a.url"] if words else [])
    assert not words or words in told[0].message
