"""A commit onto a branch of a git host: never the base branch or the host's own, never forced, the same again twice."""

from __future__ import annotations

import re
from pathlib import Path

from activities.repository.access import Access
from activities.repository.git import GitFailed, GitStopped, Report, local_environment, run_git
from activities.repository.remote import check_allowed, look_for, refusal
from foundation.errors import PushRefused, RepositoryDenied, RepositoryError, RepositoryUnreachable
from foundation.urls import without_credentials
from workflows.specs.wire import Repository

PUSH_SECONDS = 600.0

_REJECTED = re.compile(r"^ ! \[(remote rejected|rejected)\].*?(?:\((.*)\))?$", re.MULTILINE)
_SAID = re.compile(r"^(?:remote: |error: )(.+)$", re.MULTILINE)
_WORDS_CHARS = 600


def deliver(
    access: Access, repository: Repository, branch: str, tip: str, objects: list[Path], scratch: Path, report: Report
) -> str:
    """Make the branch be at ``tip``, whose objects lie in the directories ``objects``; the name of the base branch.

    A branch that is there is moved on only when ``tip`` stands on it. Raises PushRefused, and what
    ``activities.repository.remote`` raises.
    """
    url = repository.url
    check_allowed(access.settings, url)
    there, default = look_for(access, repository, branch)
    if branch in {repository.branch, default}:
        raise PushRefused(
            f"Nothing was pushed: '{branch}' is the base branch or the default branch of {without_credentials(url)}; "
            "name another one in repository.push.branch."
        )
    # A manifest may mean the server's default branch by HEAD.
    base = (default if repository.branch == "HEAD" else None) or repository.branch
    if there == tip:
        return base
    own = scratch / "pushing"
    # A repository that no confined program could write to: git reads its configuration with credentials at hand.
    kind = "sha256" if len(tip) > 40 else "sha1"  # noqa: PLR2004 -- the digits of a SHA-1
    run_git(["init", "--quiet", "--bare", f"--object-format={kind}", "--", str(own)], local_environment())
    (own / "objects" / "info").mkdir(exist_ok=True)
    (own / "objects" / "info" / "alternates").write_text("".join(f"{path}\n" for path in objects))
    options = ["--no-verify", "--no-signed", "--no-follow-tags", "--recurse-submodules=no", "--progress", "--no-thin"]
    guards = ["-c", "push.gpgSign=false", "-c", "push.pushOption=", "-c", "push.useForceIfIncludes=false"]
    refspec = f"{tip}:refs/heads/{branch}"
    try:
        run_git(
            [*guards, "--git-dir", str(own), "push", *options, "--", url, refspec],
            access.environment(url),
            seconds=PUSH_SECONDS,
            report=report,
        )
    except GitStopped:
        raise RepositoryUnreachable(
            f"The server of repository {without_credentials(url)} did not take the push within {PUSH_SECONDS:.0f} s."
        ) from None
    except GitFailed as error:
        raise _refused(access, repository, branch, error) from None
    return base


def _refused(access: Access, repository: Repository, branch: str, error: GitFailed) -> RepositoryError:
    """What git said about a push as an error of the project."""
    url = without_credentials(repository.url)
    if match := _REJECTED.search(error.words):
        reason = match[2] or ""
        if match[1] == "rejected" and reason in {"non-fast-forward", "fetch first", "stale info"}:
            return PushRefused(
                f"Nothing was pushed: branch '{branch}' of {url} has commits that this run's work does not stand on, "
                "and nothing is ever forced; name another one in repository.push.branch."
            )
        said = " ".join(line.strip() for line in _SAID.findall(error.words) if line.strip())
        told = access.redactor.redact_text(without_credentials(f"{said} ({reason})"))[:_WORDS_CHARS]
        return PushRefused(f"The server of {url} refuses the push to branch '{branch}': {told}.")
    found = refusal(access, repository, error)
    if isinstance(found, RepositoryDenied):
        told = access.redactor.redact_text(error.last_words)[:_WORDS_CHARS]
        return PushRefused(
            f"Nothing was pushed: the server of {url} refuses the credentials of secret {access.secret}; see that they "
            f"are valid and may write to this repository (git: {told})."
        )
    return found
