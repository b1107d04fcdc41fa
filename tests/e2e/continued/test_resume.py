"""A run that goes on from where another has ended, in a machine of its own, with an output that fits its schema."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.conftest import CANARY, Site

pytestmark = pytest.mark.timeout(600)

SCHEMA = {
    "type": "object",
    "properties": {"done": {"type": "boolean"}, "commits": {"type": "integer", "minimum": 1}},
    "required": ["done", "commits"],
}


def begin(site: Site) -> dict[str, str]:
    secrets = [{"name": "CANARY", "source": "env", "key": "CANARY"}]
    return {"continued": site.submit("continued", secrets=secrets)}


@pytest.mark.ahead(begin=begin)
def test_a_run_goes_on_in_the_files_and_the_conversation_of_another(site: Site, tmp_path: Path) -> None:
    first = site.client.wait(site.begun.pop("continued"))
    assert (first.state, first.error) == ("completed", None)
    # The scenario is chosen by the first message of the conversation: without that, this prompt means nothing.
    prompt = {"prompt": "Please take it from there.", "output_schema": SCHEMA, "effort": "low"}
    second = site.run("going on", claude=prompt, resume={"run": first.id})
    assert (second.state, second.error, second.cause) == ("completed", None, None)
    assert second.output == {"done": True, "commits": 1}
    assert second.continues == [first.id]
    assert second.base_commit == first.base_commit
    assert [note for note in second.notes if "placeholders" not in note] == []
    patch = site.artifact(second.id, f"{second.id}.patch", tmp_path).read_text()
    added = [line[1:] for line in patch.splitlines() if line.startswith("+") and not line.startswith("+++")]
    assert sorted(added) == sorted(["begun", "not committed", "half", "agent/half", "[redacted:CANARY]"])

    listed = {artifact.name for artifact in site.client.artifacts(second.id)}
    kept = {artifact.name for artifact in site.client.artifacts(second.id, hidden=True)} - listed
    assert kept == {f"{second.id}-conversation.jsonl"}
    conversation = site.artifact(second.id, kept.pop(), tmp_path).read_text()
    said = [json.loads(line) for line in conversation.splitlines()]
    texts = json.dumps(said)
    assert "Half of it is done." in texts
    assert "Please take it from there." in texts
    assert CANARY not in conversation
    assert json.loads(site.artifact(second.id, "metadata.json", tmp_path).read_text())["checked_out"]["ref"] == (
        "refs/heads/agent/half"
    )
