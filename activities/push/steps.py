"""The step that pushes a run's work to a branch of its git host, and asks for it to be merged."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from temporalio import activity

from activities.artifacts.confined_git import ConfinedGit
from activities.machine.secrets import RunSecrets, resolve_all
from activities.push.branch import PUSH_SECONDS, deliver
from activities.push.commits import PUSH_MAX, Commits, Signature, check_commits, make_commits
from activities.push.pull_request import Wanted, open_pull_request
from activities.repository.access import opened
from activities.repository.mirror import reading
from activities.step.announcements import announce
from activities.step.boundary import boundary
from activities.step.heartbeat import beating
from foundation.errors import MachineError, PushRefused, TaskyardError
from foundation.git.hosts import host_of
from foundation.settings import Settings
from foundation.urls import without_credentials
from storage import artifacts as stored
from storage.bucket import Bucket
from storage.layout import TASKS
from storage.names import bundle_name, patch_name
from storage.redaction import Redactor
from workflows import steps
from workflows.runs.messages import Pushed
from workflows.runs.requests import PushRequest
from workflows.specs.pushing import own_branch
from workflows.specs.wire import PullRequest, SecretReference

# What is left of an attempt's time once git has had all that it may take for the push.
_WORK_SECONDS = 0.8 * (steps.PUSH.limit.total_seconds() - PUSH_SECONDS)
_NOTHING = "Nothing was pushed: the run changed nothing."


class Pushes:
    """The step that pushes what a run has done."""

    def __init__(self, settings: Settings, bucket: Bucket) -> None:
        self._settings = settings
        self._bucket = bucket

    @activity.defn(name=steps.PUSH.name)
    @boundary
    def push_changes(self, request: PushRequest) -> Pushed:
        """Push the commits, then open the pull request; a repeated call finds both as they are.

        What cannot be helped by trying again is told in the answer, with what was done before it.
        """
        last = activity.info().attempt >= steps.PUSH.retry.maximum_attempts
        with beating():
            pushed = _Push(self._settings, self._bucket, request, last=last).run()
            announce(self._bucket, request.task_id, "pushed", _sentence(pushed))
            return pushed


class _Push:
    def __init__(self, settings: Settings, bucket: Bucket, request: PushRequest, *, last: bool) -> None:
        self._settings = settings
        self._bucket = bucket
        self._request = request
        self._last = last
        self._pushed = Pushed()
        # Of everything that must not leave.
        self._redactor = Redactor({})

    def run(self) -> Pushed:
        """What was done, with the reason why not all was. Raises what trying again can help."""
        scratch = self._settings.staging / self._request.machine_id / "push"
        shutil.rmtree(scratch, ignore_errors=True)
        try:
            scratch.mkdir(parents=True)
            self._push(scratch)
        except (TaskyardError, OSError) as error:
            if _can_be_helped(error) and not self._last:
                raise
            reason = error.message if isinstance(error, TaskyardError) else f"The host failed: {error.strerror}."
            self._pushed.error = self._redactor.redact_text(without_credentials(reason))
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return self._pushed

    def _push(self, scratch: Path) -> None:
        request = self._request
        push = request.repository.push
        if push is None or request.credentials is None:
            raise PushRefused("Nothing was pushed: the manifest names no secret that may write.")
        branch = push.branch or own_branch(request.task_id)
        self._redactor = self._known_secrets()
        mirror_of = reading(self._settings, request.repository.url, request.mirror)
        with mirror_of as mirror, opened(self._settings, request.repository, request.credentials) as access:
            git = ConfinedGit(mirror, scratch, time.monotonic() + _WORK_SECONDS)
            commits = self._commits(git, scratch)
            if commits.tip is None:
                self._pushed.note = _NOTHING
                return
            check_commits(git, request.base_commit, commits.tip, self._redactor, ci_files=push.ci_files)
            objects = [mirror / "objects", scratch / "git" / "objects"]
            base = deliver(access, request.repository, branch, commits.tip, objects, scratch, lambda _: None)
        self._pushed.branch, self._pushed.commit = branch, commits.tip
        self._pushed.note = " ".join(commits.notes) or None
        if push.pull_request is not None:
            self._ask(branch, push.pull_request.base or base, push.pull_request)

    def _commits(self, git: ConfinedGit, scratch: Path) -> Commits:
        request = self._request
        push = request.repository.push
        author = self._settings.git_author
        signature = Signature((push and push.author) or author, author, request.at)
        index = stored.index(self._bucket, TASKS.place(request.task_id))
        patch = self._fetched(index, patch_name(request.task_id), scratch / "patch")
        if patch is None:
            raise PushRefused("Nothing was pushed: the run has no patch among its artifacts.")
        bundle = self._fetched(index, bundle_name(request.task_id), scratch / "bundle") if request.head else None
        git.init(request.base_commit)
        message = (push and push.message) or request.name
        return make_commits(git, request.base_commit, request.head, patch, bundle, message, signature)

    def _fetched(self, index: Sequence[stored.StoredArtifact], name: str, target: Path) -> Path | None:
        """An artifact of the run in a file, None when there is none. Raises PushRefused."""
        found = next((each for each in index if each.name == name), None)
        if found is None:
            return None
        if found.redacted:
            raise PushRefused(
                f"Nothing was pushed: a value of a secret of this run was in {name}. Take it out of the work, and give "
                "the secret a new value if others have seen it."
            )
        if found.size_bytes > PUSH_MAX:
            raise PushRefused(f"Nothing was pushed: {name} is too large to be pushed.")
        with target.open("wb") as file:
            for chunk in stored.open_stream(self._bucket, TASKS.place(self._request.task_id), name):
                file.write(chunk)
        return target

    def _ask(self, branch: str, base: str, asked: PullRequest) -> None:
        """Open the pull request."""
        request, redactor = self._request, self._redactor
        found = host_of(self._settings.git_hosts, request.repository.url)
        if found is None or request.api_credentials is None:
            raise PushRefused(
                f"No pull request was opened: {without_credentials(request.repository.url)} is of none of the hosts "
                "that TASKYARD_GIT_HOSTS names on the VM host; add it there with its kind."
            )
        host, name = found
        title = redactor.redact_text(asked.title or request.name)
        wanted = Wanted(branch, base, title, redactor.redact_text(asked.body), asked.draft)
        there = open_pull_request(host, name, self._token(request.api_credentials), wanted)
        self._pushed.base = base
        self._pushed.pull_request_url, self._pushed.pull_request_number = there.url, there.number

    def _token(self, reference: SecretReference) -> str:
        value = resolve_all(self._settings, [reference])[reference.name].strip()
        token = value.rpartition(":")[2]
        if not token or not token.isascii() or not token.isprintable() or " " in token:
            raise PushRefused(
                f"No pull request was opened: secret {reference.name} holds no token, which an API wants."
            )
        return token

    def _known_secrets(self) -> Redactor:
        """The run's secrets as they were given to it, and those for the git host."""
        request = self._request
        own = [each for each in (request.credentials, request.api_credentials) if each]
        values = RunSecrets(self._settings).known(request.machine_id, request.secrets)
        for_host = resolve_all(self._settings, own)
        return Redactor(values | {name: _secret_part(value) for name, value in for_host.items()})


def _can_be_helped(error: TaskyardError | OSError) -> bool:
    """Whether trying again can help. What git met in the work it meets again."""
    return isinstance(error, OSError) or (error.retryable and not isinstance(error, MachineError))


def _secret_part(value: str) -> str:
    """Of ``user:token`` the token: the user is no secret."""
    value = value.strip()
    return value if value.startswith("-----BEGIN") else value.rpartition(":")[2] or value


def _sentence(pushed: Pushed) -> str:
    """What the run's log says of it."""
    said = []
    if pushed.branch and pushed.commit:
        said.append(f"Pushed {pushed.commit[:12]} to branch {pushed.branch}.")
    if pushed.pull_request_url:
        said.append(f"It is asked to be merged into {pushed.base}: {pushed.pull_request_url}")
    return " ".join([*said, *(text for text in (pushed.note, pushed.error) if text)])
