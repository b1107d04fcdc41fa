"""The OpenAPI description and the server, held to one another; a documentation page that is whole in itself."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from storage import artifacts
from storage.layout import TASKS
from tests.api_site import ApiSite
from tests.dialects.native.test_logs import ended_run

EXAMPLES = 12
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.mark.timeout(600)
async def test_no_request_meets_a_server_error_or_an_answer_that_is_not_described(site: ApiSite) -> None:
    ended = await ended_run(site, "one")
    report = await asyncio.to_thread(artifacts.store, site.bucket, TASKS.place(ended), "report.md", b"# Report\n")
    await asyncio.to_thread(artifacts.write_index, site.bucket, TASKS.place(ended), [report])
    description: dict[str, Any] = (await site.http.get("/openapi.json")).json()
    assert description["openapi"].startswith("3.1")
    # Among what is tried for an id is that of a run that there is; it has ended, so no follower waits for it.
    values = {
        "request_id": ["a", "ü/b"],
        "task_id": [ended, "never-was", "ü/../x"],
        "name": ["report.md", "other"],
        "key": ["build-1", "ü"],
    }
    for path in description["paths"].values():
        for operation in path.values():
            for parameter in operation.get("parameters", []):
                if parameter["in"] == "path":
                    parameter["schema"] = {"enum": values[parameter["name"]]}
    schema = schemathesis.openapi.from_dict(description)
    failures: list[str] = []
    tried = Counter[str]()

    def try_all() -> None:
        for found in schema.get_all_operations():
            operation = found.ok()

            @settings(
                max_examples=EXAMPLES,
                deadline=None,
                derandomize=True,
                database=None,
                phases=[Phase.explicit, Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=st.one_of([operation.as_strategy(generation_mode=mode) for mode in GenerationMode]))
            def try_one(case: Any) -> None:
                tried[operation.label] += 1  # noqa: B023 -- called within its turn of the loop
                case.call_and_validate(base_url=site.url, checks=CHECKS, timeout=30)

            try:
                try_one()
            except Exception as error:  # noqa: BLE001 -- all of them are told together
                failures.append(f"{operation.label}: {error}")

    async with site.worker() as steps:
        steps.agent_over.set()
        await asyncio.to_thread(try_all)
    assert not failures, "\n\n".join(failures)
    assert len(tried) >= 13
    assert sum(tried.values()) > len(tried)


async def test_every_endpoint_says_what_it_does_and_shows_an_example(site: ApiSite) -> None:
    description = (await site.http.get("/openapi.json")).json()
    without = []
    for path, operations in description["paths"].items():
        for method, operation in operations.items():
            assert operation["summary"], path
            assert operation["description"], path
            answers = [answer for status, answer in operation["responses"].items() if status.startswith("2")]
            if "example" not in str(answers) and "example" not in str(_resolved(description, answers)):
                without.append(f"{method} {path}")
    assert without == []


async def test_the_documentation_page_needs_nothing_from_elsewhere(site: ApiSite) -> None:
    page = (await site.http.get("/docs")).text
    links = re.findall(r"""(?:src|href)=["']([^"']+)""", page)
    assert len(links) >= 2
    for link in links:
        assert link.startswith("/"), link
        reply = await site.http.get(link)
        assert (reply.status_code, len(reply.content) > 0) == (200, True), link
    assert "://" not in page
    assert (await site.http.get("/redoc")).status_code == 404


def _resolved(description: dict[str, Any], part: Any) -> Any:
    """The part with the schemas that it names in their places."""
    names = re.findall(r"#/components/schemas/(\w+)", str(part))
    return [description["components"]["schemas"][name] for name in names]
