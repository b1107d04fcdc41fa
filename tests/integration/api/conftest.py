"""What tests of programs in a machine share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.stand_ins.ports.programs import Program
from tests.stand_ins.ports.site import PortSite, port_site


@pytest.fixture
async def ports(tmp_path: Path) -> AsyncIterator[PortSite]:
    async with port_site(tmp_path) as site:
        yield site


@pytest.fixture
async def program() -> AsyncIterator[Program]:
    async with Program() as running:
        yield running
