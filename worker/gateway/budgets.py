"""Budgets of machines: limits in a file among each machine's own, and the refusal of whoever has used them up."""

from __future__ import annotations

import threading
from pathlib import Path

import structlog
from pydantic import ValidationError

from foundation.durable import write_durably
from worker.gateway.usage import UsageLedger
from workflows.runs.budget import Budget
from workflows.runs.messages import TokenUsage

_BUDGET = "budget.json"

_log = structlog.get_logger(__name__)


class KeptBudget(Budget):
    """A machine's budget, and whether a request was refused since it was set or raised last."""

    refused: bool = False


class BudgetBook:
    """The budgets of a host's machines. Works from any thread, and from several processes.

    ``directory`` holds the machines' directories. A budget is there before the machine's agent is.
    """

    def __init__(self, directory: Path, ledger: UsageLedger) -> None:
        self._directory = directory
        self._ledger = ledger
        self._lock = threading.Lock()
        # Those whose file the disk did not take.
        self._refused: set[str] = set()

    def set(self, machine_id: str, budget: Budget) -> None:
        """Set or raise the budget, to outlive crashes of this process and host. Raises OSError when it does not."""
        with self._lock:
            before = self._read(machine_id)
            if before is not None and _limits(before) == _limits(budget):
                return
            if before is None and budget.unlimited:
                return
            kept = KeptBudget.model_validate(budget.model_dump())
            write_durably(self._path(machine_id), kept.model_dump_json())
            self._refused.discard(machine_id)

    def usage(self, machine_id: str) -> TokenUsage:
        """What the machine has used so far, beside its limits."""
        return self._usage(machine_id, self._read(machine_id))

    def account(self, machine_id: str) -> tuple[TokenUsage, str | None]:
        """``usage`` and ``used_up``, as they were at one moment."""
        budget = self._read(machine_id)
        usage = self._usage(machine_id, budget)
        if budget is None or not self._is_refused(machine_id, budget):
            return usage, None
        return usage, budget.used_up_by(usage)

    def refusal(self, machine_id: str) -> tuple[str, bool] | None:
        """Why a request of the machine is refused now, and whether it may try again; None when it is not refused."""
        budget = self._read(machine_id)
        if budget is None or (sentence := budget.used_up_by(self._usage(machine_id, budget))) is None:
            return None
        if not self._is_refused(machine_id, budget):
            self._note_refusal(machine_id, budget)
        return sentence, budget.pause

    def used_up(self, machine_id: str) -> str | None:
        """The sentence of the refusal, once a request was refused and while the next one would be; None otherwise."""
        return self.account(machine_id)[1]

    def _usage(self, machine_id: str, budget: KeptBudget | None) -> TokenUsage:
        limits = {"budget_usd": budget.usd, "budget_tokens": budget.tokens} if budget else {}
        return TokenUsage.model_validate({**self._ledger.read(machine_id), **limits})

    def _is_refused(self, machine_id: str, budget: KeptBudget) -> bool:
        return budget.refused or machine_id in self._refused

    def _note_refusal(self, machine_id: str, seen: KeptBudget) -> None:
        with self._lock:
            if self._read(machine_id) != seen:
                return  # raised meanwhile
            _log.info("a budget is used up", machine=machine_id)
            try:
                write_durably(self._path(machine_id), seen.model_copy(update={"refused": True}).model_dump_json())
            except OSError as error:
                self._refused.add(machine_id)
                _log.warning("a refusal is not on disk", machine=machine_id, error=str(error))

    def _read(self, machine_id: str) -> KeptBudget | None:
        """The budget as it is kept. One that cannot be read lets nothing pass until its run sets it anew."""
        try:
            return KeptBudget.model_validate_json(self._path(machine_id).read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValidationError) as error:
            _log.warning("a budget cannot be read", machine=machine_id, error=str(error))
            return KeptBudget(usd=0.0, tokens=0, pause=True)

    def _path(self, machine_id: str) -> Path:
        return self._directory / machine_id / _BUDGET


def _limits(budget: Budget) -> tuple[float | None, int | None, bool]:
    return budget.usd, budget.tokens, budget.pause
