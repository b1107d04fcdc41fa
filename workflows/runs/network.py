"""What a run's machine may reach: the policy that it starts with, and how that is changed while the run goes on."""

from __future__ import annotations

import asyncio

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError

from foundation.errors import Conflict, RateLimitExceeded, ServiceUnavailable, TaskyardError
from workflows import steps
from workflows.calls import host_is_away
from workflows.refusals import refusal
from workflows.runs.calls import RunCalls
from workflows.runs.messages import NetworkChange, NetworkStanding
from workflows.runs.report import RunReport
from workflows.runs.requests import SetNetworkRequest
from workflows.specs.policy import changed, in_one_spelling, in_words
from workflows.specs.wire import NetworkPolicy

# Changes that one run takes, and that may wait at once: each costs its history some fifteen events.
CHANGES_MOST = 500
WAITING_MOST = 50
# Refused changes of which the status tells each.
_NOTED_MOST = 10
_NAMED_MOST = 5


class Network:
    """The policy of one run. Its changes are carried out one after another, in the order in which they came."""

    def __init__(self, calls: RunCalls, report: RunReport, machine_id: str, policy: NetworkPolicy) -> None:
        self.policy = in_one_spelling(policy)
        self._calls = calls
        self._report = report
        self._machine_id = machine_id
        self._turn = asyncio.Lock()
        self._taken = 0
        self._waiting = 0
        self._noted = 0
        self._revision = 0
        # What the machine was started with, from the moment on at which that was asked for.
        self._given: NetworkPolicy | None = None
        self._started = False
        self._in_force = False
        self._refusal: str | None = None
        self._show()

    # --- the machine

    def give(self) -> NetworkPolicy:
        """The policy for a machine that is to be started now."""
        self._given = self.policy
        return self.policy

    def keep_as_it_is(self) -> None:
        """The machine is of an earlier version, and has no network that could be changed."""
        self._refusal = "The run began under a version whose machines have no network to be changed; submit it again."

    async def machine_started(self) -> None:
        """The machine runs, and nothing runs in it yet: what was changed meanwhile comes into force. Raises RunEnded.

        From here on each change is brought into force at once.
        """
        if self._refusal is not None:
            return
        async with self._turn:
            self._started = True
            if self.policy != self._given:
                request = self._request(self.policy, self._given or NetworkPolicy())
                await self._calls.interruptible(steps.NETWORK, request, f"Network: {in_words(self.policy)}")
            self._in_force = True
            self._show()

    def end(self) -> None:
        """The agent is gone, and with it the need for a network."""
        self._refusal = self._refusal or "The run's agent has ended; its network is not changed any more."

    # --- changes

    def check(self, change: NetworkChange) -> None:
        """Raise ApplicationError, with the code of an error of ours, for a change that would be refused now."""
        try:
            self._check_open()
            if self._waiting >= WAITING_MOST:
                raise RateLimitExceeded(f"{WAITING_MOST} changes of the network are waiting; send this one later.")
            if self._taken >= CHANGES_MOST:
                raise RateLimitExceeded(f"The run's network was changed {CHANGES_MOST} times, the most for one run.")
            if not self._waiting:
                self._changed(change)
        except TaskyardError as error:
            raise refusal(error) from None

    async def change(self, change: NetworkChange) -> NetworkStanding:
        """Carry a change out when its turn has come, and answer when it is in force or kept for the machine to come.

        Raises ApplicationError with the code of an error of ours; the policy then is as it was before, as far as that
        is known: what was not answered may be in force all the same, until it is set anew.
        """
        self.check(change)
        self._taken += 1
        self._waiting += 1
        try:
            async with self._turn:
                self._check_open()
                await self._carry_out(self._changed(change))
        except TaskyardError as error:
            raise refusal(error) from None
        finally:
            self._waiting -= 1
        return NetworkStanding(policy=self.policy, in_force=self._in_force)

    async def take(self, change: NetworkChange) -> None:
        """Carry a change out about which nobody waits for an answer: what is refused of it is noted."""
        try:
            await self.change(change)
        except ApplicationError as error:
            self._noted += 1
            if self._noted <= _NOTED_MOST:
                self._report.note(f"A change of the network was refused: {error.message}")
            else:
                self._report.note("Further changes of the network were refused.")

    # --- how

    async def _carry_out(self, policy: NetworkPolicy) -> None:
        if self._started and (policy != self.policy or not self._in_force):
            await self._set(policy)
        self.policy = policy
        self._show()

    async def _set(self, policy: NetworkPolicy) -> None:
        handle = self._calls.start(steps.NETWORK, self._request(policy, self.policy), f"Network: {in_words(policy)}")
        await workflow.wait_condition(lambda: handle.done() or self._refusal is not None)
        if not handle.done():
            handle.cancel()
        self._check_open()
        try:
            await handle
        except ActivityError as error:
            self._in_force = False
            self._show()
            self._calls.note_failure(steps.NETWORK, error)
            why = "its host did not answer in time" if host_is_away(error) else str(getattr(error.cause, "message", ""))
            raise ServiceUnavailable(
                f"The change is not in force, as far as is known: {why or 'its host failed'}; send it again."
            ) from error
        self._in_force = True

    def _request(self, policy: NetworkPolicy, before: NetworkPolicy) -> SetNetworkRequest:
        self._revision += 1
        return SetNetworkRequest(
            task_id=self._report.status.id,
            machine_id=self._machine_id,
            policy=policy,
            revision=self._revision,
            changes=_difference(before, policy),
        )

    def _changed(self, change: NetworkChange) -> NetworkPolicy:
        return changed(self.policy, change.mode, change.allow, change.remove)

    def _check_open(self) -> None:
        if self._refusal is not None:
            raise Conflict(self._refusal)

    def _show(self) -> None:
        self._report.status.network_policy = self.policy
        self._report.status.network_in_force = self._in_force


def _difference(before: NetworkPolicy, after: NetworkPolicy) -> str:
    """What a change does, in words."""
    parts = [f"mode {after.mode}"] if after.mode is not before.mode else []
    for verb, hosts in (
        ("allowed", [each for each in after.hosts if each not in before.hosts]),
        ("removed", [each for each in before.hosts if each not in after.hosts]),
    ):
        if hosts:
            more = f" and {len(hosts) - _NAMED_MOST} more" if len(hosts) > _NAMED_MOST else ""
            parts.append(f"{', '.join(hosts[:_NAMED_MOST])}{more} {verb}")
    return "; ".join(parts) or "set again"
