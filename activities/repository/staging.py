"""The workspace of a run: its repository mirrored on the host, checked out, and made into a disk image."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from temporalio import activity

from activities.agent.conversation import place_in
from activities.repository.access import opened
from activities.repository.continuation import EarlierRun
from activities.repository.git import GitFailed, Report, local_environment, run_git
from activities.repository.lfs import fill
from activities.repository.mirror import STAGED, Mirror, needed
from activities.repository.remote import check_allowed, look_up, nearest, on_its_branch
from activities.repository.submodules import Submodules
from activities.step.announcements import announce, announce_state
from activities.step.boundary import boundary
from activities.step.heartbeat import beating
from foundation.durable import ORDINARY, write_whole
from foundation.errors import RefNotFound, RepositoryError
from foundation.settings import Settings
from foundation.units import format_size, parse_size
from foundation.urls import without_credentials
from machines.disks.workspace import build_workspace
from storage.bucket import Bucket
from workflows import steps
from workflows.runs.requests import StagedSubmodule, StageRequest, StageResult
from workflows.runs.states import STATE_MESSAGES, TaskState
from workflows.specs.wire import Repository

_TOLD_EVERY_SECONDS = 10.0


class Repositories:
    """The step that stages a repository. ``meanwhile`` begins what needs no repository, and returns at once."""

    def __init__(
        self, settings: Settings, bucket: Bucket, meanwhile: Callable[[StageRequest], None] = lambda _: None
    ) -> None:
        self._settings = settings
        self._bucket = bucket
        self._meanwhile = meanwhile

    @activity.defn(name=steps.STAGE.name)
    @boundary
    def stage_repository(self, request: StageRequest) -> StageResult:
        """Make the workspace image, or give the one that an earlier attempt made."""
        announce_state(self._bucket, request.task_id, TaskState.STAGING, STATE_MESSAGES[TaskState.STAGING])
        progress = _Progress(self._bucket, request.task_id)
        self._meanwhile(request)
        with beating():
            staged = stage(self._settings, request, progress, self._bucket)
        announce(
            self._bucket,
            request.task_id,
            "staged",
            f"Repository {without_credentials(request.repository.url)} at {staged.base_commit[:12]}: "
            f"{staged.files} files, disk image of {format_size(staged.size_bytes)}.",
        )
        for note in staged.notes:
            announce(self._bucket, request.task_id, "note", note)
        return staged


def stage(settings: Settings, request: StageRequest, report: Report, bucket: Bucket | None = None) -> StageResult:
    """Stage a repository. The image is ``Settings.staging/<machine id>/workspace.raw``; nothing else stays.

    Unless the repository asks for them, submodules are left as they are in the commit (empty directories), and files of
    git LFS as their pointers. What an earlier run has left, which this one continues, comes from the ``bucket``. Raises
    the errors of ``activities.repository.remote``, and RefNotFound for a commit or subpath.
    """
    check_allowed(settings, request.repository.url)
    directory = settings.staging / request.machine_id
    if staged := _earlier(directory, request):
        return staged
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    with opened(settings, request.repository, request.credentials) as access:
        repository = on_its_branch(access, request.repository)
        mirror = Mirror(settings, repository, access, lambda line: report(access.redactor.redact_text(line)))
        earlier = EarlierRun(bucket, request.resume) if bucket is not None and request.resume else None
        return _stage(mirror, request, directory, earlier)


def _stage(mirror: Mirror, request: StageRequest, directory: Path, earlier: EarlierRun | None) -> StageResult:
    tree, image = directory / "tree", directory / "workspace.raw"
    size = parse_size(request.disk)
    submodules: list[StagedSubmodule] = []

    def check_lfs(mirror: Mirror, path: Path, clone: Path) -> None:
        if request.repository.lfs:
            fill(mirror, path, clone, directory, size)

    with needed(mirror.path, directory):
        try:
            pinned = earlier.base_commit(mirror.repository.url) if earlier else None
            base, files = _check_out(mirror, tree, check_lfs, pinned)
            if request.repository.submodules:
                submodules = Submodules(mirror, tree, directory, size, check_lfs).clone()
            place_in(tree).mkdir(parents=True)
            conversation = None
            if earlier and pinned:
                mirror.report(f"Continuing run {earlier.resume.run}")
                earlier.lay_files(tree, mirror.path, directory, [each.path for each in submodules])
                conversation = earlier.lay_conversation(tree, mirror.repository.subpath)
            mirror.report("Making the workspace disk")
            build_workspace(tree, image, size)
        finally:
            shutil.rmtree(tree, ignore_errors=True)
        staged = StageResult(
            base_commit=base,
            workspace_image=str(image),
            files=files,
            size_bytes=image.stat().st_blocks * 512,
            mirror=mirror.path.name,
            submodules=submodules,
            conversation=conversation,
            notes=earlier.notes if earlier else [],
        )
        # Written last: an image without it is not taken for finished.
        write_whole(directory / STAGED, _key(request) + "\n" + staged.model_dump_json(), ORDINARY)
    return staged


def _earlier(directory: Path, request: StageRequest) -> StageResult | None:
    """The result of an earlier call with the same request, if its image is still there."""
    try:
        key, _, result = (directory / STAGED).read_text().partition("\n")
    except FileNotFoundError:
        return None
    staged = StageResult.model_validate_json(result)
    return staged if key == _key(request) and Path(staged.workspace_image).exists() else None


def _key(request: StageRequest) -> str:
    return request.model_dump_json(include={"repository", "disk", "credentials", "resume"})


def _check_out(
    mirror: Mirror, tree: Path, checked_out: Callable[[Mirror, Path, Path], None], pinned: str | None
) -> tuple[str, int]:
    """A clone of its own with the work tree checked out; the base commit and the count of files.

    The base commit is the one that is ``pinned``, in place of the branch's tip.
    """
    repository, report = mirror.repository, mirror.report
    report(f"Looking for branch {repository.branch} of {without_credentials(repository.url)}")
    branch = look_up(mirror.access, repository)

    def clone(*, anew: bool) -> tuple[str, int]:
        with mirror.refreshed(branch, anew=anew) as path:
            at = replace(mirror, repository=repository.model_copy(update={"commit": pinned})) if pinned else mirror
            base = at.commit(path, branch)
            files = _clone(path, repository, base, tree, report)
            checked_out(mirror, path, tree)
            return base, files

    try:
        return clone(anew=False)
    except GitFailed as damaged:
        report(f"The mirror is damaged and is made anew ({damaged.last_words})")
    shutil.rmtree(tree, ignore_errors=True)
    try:
        return clone(anew=True)
    except GitFailed as error:
        url = without_credentials(repository.url)
        raise RepositoryError(
            f"Repository {url} (branch {repository.branch}) cannot be checked out (git: {error.last_words}).",
            url=url,
            branch=repository.branch,
        ) from None


def _clone(mirror: Path, repository: Repository, base: str, tree: Path, report: Report) -> int:
    environment = local_environment()
    _check_subpath(mirror, repository, base)
    run_git(
        ["clone", "--quiet", "--local", "--no-checkout", f"--branch={repository.branch}", "--", str(mirror), str(tree)],
        environment,
    )

    def in_tree(*arguments: str) -> str:
        return run_git(["-C", str(tree), *arguments], environment, report=report)

    in_tree("config", "remote.origin.url", without_credentials(repository.url))
    if repository.commit is None:
        # Another run may have fetched since the base was looked up, and the branch of the mirror gone on.
        in_tree("update-ref", "HEAD", base)
        in_tree("checkout", "--progress", "--force", repository.branch, "--")
    else:
        in_tree("checkout", "--progress", "--force", "--detach", base, "--")
    return in_tree("ls-files", "-z").count("\0")


def _check_subpath(mirror: Path, repository: Repository, base: str) -> None:
    """Raises RefNotFound unless the manifest's subpath is a directory of the commit."""
    if repository.subpath is None:
        return
    listing = run_git(
        ["--git-dir", str(mirror), "ls-tree", "-r", "-d", "-z", "--name-only", base, "--"], local_environment()
    )
    directories = listing.split("\0")[:-1]
    subpath = os.path.normpath(repository.subpath)
    if subpath not in {*directories, "."}:
        url = without_credentials(repository.url)
        raise RefNotFound(
            f"Repository {url} has no directory '{repository.subpath}' at commit {base[:12]} of branch "
            f"{repository.branch}; {nearest(subpath, directories)}",
            url=url,
            branch=repository.branch,
            subpath=repository.subpath,
        )


class _Progress:
    """Progress for the run log, at most every few seconds."""

    def __init__(self, bucket: Bucket, task_id: str) -> None:
        self._bucket = bucket
        self._task_id = task_id
        self._last = time.monotonic()

    def __call__(self, line: str) -> None:
        if time.monotonic() - self._last >= _TOLD_EVERY_SECONDS:
            self._last = time.monotonic()
            announce(self._bucket, self._task_id, "progress", line)
