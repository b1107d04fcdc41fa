"""What a run that is started through this dialect gets: its repository by a short name, variables, and files."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from activities.machine.secrets import resolve_all
from activities.repository.staging import stage
from foundation.git.hosts import CredentialReference
from storage.bucket import Bucket
from tests.api_site import ApiSite
from tests.dialects.posthog.test_artifacts import send_file
from tests.dialects.posthog.test_tasks import made_task
from tests.stand_ins.git_host import GitHostStandIn
from tests.workspace_reading import extract_workspace
from workflows.runs.requests import AgentRequest, PushRequest, SecretsRequest, StageRequest, StageResult

TOKEN = "canary-token-5d31c0ffee"
CANARY = "canary-5d31c0ffee"


async def test_a_run_gets_its_private_repository_its_variables_and_its_files(
    client: httpx.AsyncClient, site: ApiSite, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("CI_GIT_TOKEN", TOKEN)
    own = site.settings.model_copy(update={"home": tmp_path / "host"})
    requests: dict[str, Any] = {}

    async def staged(request: StageRequest) -> StageResult:
        requests["stage"] = request
        return await asyncio.to_thread(stage, own, request, lambda _: None, bucket)

    with GitHostStandIn("gitea", tmp_path / "served", TOKEN) as host:
        named = host.host()
        named.credentials = CredentialReference(source="env", key="CI_GIT_TOKEN")
        site.settings.git_hosts = [named]
        variables = {"name": "Web", "network_access_level": "custom", "environment_variables": {"API_KEY": CANARY}}
        environment = (await client.post("/sandbox_environments/", json=variables)).raise_for_status().json()
        task = await made_task(client, repository="org/repo", description="Fix it")
        file = await send_file(client, f"/tasks/{task['id']}/staged_artifacts")
        body = {
            "sandbox_environment_id": environment["id"],
            "pending_user_artifact_ids": [file["id"]],
            "pending_user_message": "Follow the plan",
        }
        async with site.worker() as steps:
            steps.instead["stage"] = staged
            reply = await client.post(f"/tasks/{task['id']}/run/", json=body)
            assert reply.status_code == 200, reply.text
            run = reply.json()["latest_run"]
            await steps.agent_running.wait()
            steps.agent_over.set()
            await site.until_state(run["id"], "completed")
            requests |= steps.requests
        shown = (await client.get(f"/tasks/{task['id']}/runs/{run['id']}/")).json()

    stage_request: StageRequest = requests["stage"]
    assert (stage_request.repository.url, stage_request.repository.branch) == (host.url, "HEAD")
    tree = tmp_path / "tree"
    image = own.staging / stage_request.machine_id / "workspace.raw"
    await asyncio.to_thread(extract_workspace, image, tree, dirty=False)
    assert (tree / "app.py").read_text() == "one\ntwo\nthree\n"
    # What opens the repository stays with git, and opens it again for the push.
    secrets: SecretsRequest = requests["secrets"]
    assert await asyncio.to_thread(resolve_all, site.settings, secrets.secrets) == {"API_KEY": CANARY}
    push: PushRequest = requests["push"]
    assert push.credentials is not None
    assert push.credentials.key == "CI_GIT_TOKEN"
    assert push.repository.push is not None
    assert push.repository.push.pull_request is not None
    agent: AgentRequest = requests["run_agent"]
    assert agent.claude.prompt == "Follow the plan\n\nThe attached file 'plan.md':\n\nplan"
    assert [each["name"] for each in shown["artifacts"]] == ["plan.md"]
    assert CANARY not in str(shown)
    assert TOKEN not in str(shown)
