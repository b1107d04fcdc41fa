"""Budgets at the gateway: kept by what the model says it counted, through restarts, full disks, guests that lie."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from foundation.settings import Settings
from tests.waiting import until
from worker.gateway import budgets, usage
from worker.gateway.model_gateway import Gateway, GatewayLimits
from workflows.runs.budget import Budget
from workflows.runs.messages import ContinueRequest, TokenUsage

MACHINE = "vm-00112233445566aa"
PRICES = Path(__file__).parents[2] / "prices.yaml"
BODY = {
    "model": "any",
    "max_tokens": 10,
    "messages": [{"role": "user", "content": "hello"}],
    "tools": [{"name": "Bash"}],
}


@pytest.fixture
def settings() -> Iterator[Settings]:
    # Not tmp_path, whose length would move the sockets out of the home.
    with tempfile.TemporaryDirectory(prefix="ty-") as home:
        made = Settings(home=Path(home), anthropic_api_key=None, price_table=PRICES)
        record = made.machines / MACHINE / "machine.json"
        record.parent.mkdir(parents=True)
        record.write_text("{}")
        yield made


@asynccontextmanager
async def serving(settings: Settings, **limits: Any) -> AsyncIterator[tuple[Gateway, httpx.AsyncClient]]:
    gateway = Gateway(settings, limits=GatewayLimits(**limits))
    await gateway.start()
    transport = httpx.AsyncHTTPTransport(uds=str(settings.sockets / "gateway.sock"))
    headers = {"authorization": f"Bearer {gateway.token(MACHINE)}"}
    try:
        async with httpx.AsyncClient(base_url="http://gateway", transport=transport, headers=headers) as client:
            yield gateway, client
    finally:
        await gateway.stop()


async def ask(client: httpx.AsyncClient, **more: Any) -> httpx.Response:
    return await client.post("/v1/messages", json={**BODY, **more})


@pytest.mark.parametrize("budget", [Budget(tokens=1), Budget(usd=0.01), Budget(usd=0.01, tokens=10**9)])
async def test_a_request_beyond_the_budget_is_refused_for_good(settings: Settings, budget: Budget) -> None:
    async with serving(settings) as (gateway, client):
        gateway.set_budget(MACHINE, budget)
        for stream in (False, True):
            assert gateway.used_up(MACHINE) is None
            answer = await ask(client, stream=stream)
            assert answer.status_code == (400 if stream else 200)
        assert answer.headers["x-should-retry"] == "false"
        assert answer.json()["error"]["type"] == "invalid_request_error"
        assert answer.json()["error"]["message"] == gateway.used_up(MACHINE)
        assert "The budget of this run is used up" in (gateway.used_up(MACHINE) or "")
        assert gateway.usage(MACHINE).requests == 1
    # A worker that is started anew knows both the limit and that it was met.
    async with serving(settings) as (gateway, client):
        assert gateway.used_up(MACHINE) is not None
        assert (await ask(client)).status_code == 400


async def test_cost_and_limits_are_told_beside_the_tokens(settings: Settings) -> None:
    async with serving(settings) as (gateway, client):
        gateway.set_budget(MACHINE, Budget(usd=1000.0, tokens=10**9))
        await ask(client)
        used = gateway.usage(MACHINE)
    assert used.cost_usd == pytest.approx((used.input_tokens + used.output_tokens) / 1000)
    assert (used.budget_usd, used.budget_tokens) == (1000.0, 10**9)
    assert (used.unpriced_tokens, used.unpriced_models) == (0, [])


async def test_a_model_without_a_price_is_told_and_counts_as_the_dearest_one(settings: Settings) -> None:
    table = settings.home / "prices.yaml"
    table.write_text(PRICES.read_text().replace("taskyard-scripted-model", "another"))
    async with serving(settings.model_copy(update={"price_table": table})) as (gateway, client):
        gateway.set_budget(MACHINE, Budget(usd=0.01))
        assert (await ask(client)).status_code == 200
        used = gateway.usage(MACHINE)
        assert used.unpriced_models == ["taskyard-scripted-model"]
        assert used.unpriced_tokens == used.input_tokens + used.output_tokens > 0
        assert not used.cost_usd
        assert used.unpriced_usd == pytest.approx(used.unpriced_tokens / 1000)
        assert (await ask(client)).status_code == 400


async def test_who_may_be_continued_is_held_back_and_goes_on_once_the_budget_is_raised(settings: Settings) -> None:
    async with serving(settings, refusal_seconds=600) as (gateway, client):
        gateway.set_budget(MACHINE, Budget(tokens=1, pause=True))
        await ask(client)
        held = asyncio.create_task(ask(client))
        await until(lambda: gateway.used_up(MACHINE) is not None, "the refusal")
        assert not held.done()
        await asyncio.to_thread(gateway.settle, MACHINE)
        for answer in (await held, await ask(client)):
            assert (answer.status_code, answer.json()["error"]["type"]) == (429, "rate_limit_error")
            assert int(answer.headers["retry-after"]) > 0
        gateway.set_budget(MACHINE, Budget(tokens=10**9, pause=True))
        assert gateway.used_up(MACHINE) is None
        assert (await ask(client)).status_code == 200


async def test_an_answer_under_way_is_broken_off_before_the_machine_is_paused(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.gateway.model_gateway._SETTLE_SECONDS", 0.0)
    scenario = settings.home / "slow.yaml"
    scenario.write_text("name: slow\nturns: [{text: " + "word" * 200 + ", delay: 300}]\n")
    async with serving(settings.model_copy(update={"scenario": scenario})) as (gateway, client):
        gateway.set_budget(MACHINE, Budget(tokens=1, pause=True))
        async with client.stream("POST", "/v1/messages", json={**BODY, "stream": True}) as answer:
            lines = answer.aiter_lines()
            await anext(lines)
            await asyncio.to_thread(gateway.settle, MACHINE)
            rest = "\n".join([line async for line in lines])
        assert "broke off" in rest
        # What it has said so far counts.
        assert gateway.usage(MACHINE).output_tokens > 0


async def test_a_full_disk_lifts_no_limit(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(settings) as (gateway, client):
        gateway.set_budget(MACHINE, Budget(tokens=1))

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(usage, "write_whole", full)
            patch.setattr(budgets, "write_durably", full)
            assert (await ask(client)).status_code == 200
            assert (await ask(client)).status_code == 400
            assert gateway.used_up(MACHINE) is not None
            with pytest.raises(OSError, match="No space"):
                gateway.set_budget(MACHINE, Budget(tokens=10**9))
        before = gateway.usage(MACHINE)
        gateway.set_budget(MACHINE, Budget(tokens=10**9))
        assert (await ask(client)).status_code == 200
        # And once there is room, what was counted meanwhile is on disk too.
        assert Gateway(settings).usage(MACHINE).input_tokens > before.input_tokens > 0


async def test_a_request_that_nobody_waits_for_is_counted_by_its_size(settings: Settings) -> None:
    scenario = settings.home / "slow.yaml"
    scenario.write_text("name: slow\nturns: [{text: late, delay: 2}]\n")
    async with serving(settings.model_copy(update={"scenario": scenario})) as (gateway, client):
        with pytest.raises(httpx.ReadTimeout):
            await client.post("/v1/messages", json={**BODY, "padding": "x" * 40_000}, timeout=0.5)
        await until(lambda: gateway.usage(MACHINE).input_tokens >= 10_000, "the count")
        assert gateway.usage(MACHINE).requests == 0


def test_a_budget_that_cannot_be_read_lets_nothing_pass_until_it_is_set(settings: Settings) -> None:
    gateway = Gateway(settings)
    (settings.machines / MACHINE / "budget.json").write_text("no budget")
    assert gateway._budgets.refusal(MACHINE) is not None
    gateway.set_budget(MACHINE, Budget(tokens=5))
    assert gateway._budgets.refusal(MACHINE) is None


def test_what_is_added_counts_for_the_limits_that_there_are() -> None:
    budget = Budget(usd=0.1, pause=True)
    more = budget.raised(ContinueRequest(budget_usd=0.2, tokens=5))
    assert (more.usd, more.tokens, more.pause) == (0.3, None, True)
    used = TokenUsage(input_tokens=10, cost_usd=0.2, unpriced_usd=0.1)
    assert more.used_up_by(used) == "The budget of this run is used up: $0.30 of $0.30 are spent."
    assert more.raised(ContinueRequest(budget_usd=0.01)).used_up_by(used) is None
    assert Budget().used_up_by(used) is None
    both = Budget(usd=0.01, tokens=10).used_up_by(used)
    assert both is not None
    assert "10 of 10 tokens are used" in both
