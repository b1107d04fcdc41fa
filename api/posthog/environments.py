"""Routes for sandbox environments of a project: variables and network level of its runs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import Field, field_validator

from api.deps import ServicesOf
from api.environments.core import Change
from api.posthog.forms import FORM_BYTES, Form, read_form
from api.posthog.lookup import GrantOf, ProjectOf
from api.posthog.paging import PagingOf
from api.posthog.paths import PROJECT
from api.posthog.users import user
from foundation.errors import InvalidBody
from foundation.faults import Fault
from storage.environments.store import Environment

router = APIRouter(prefix=f"{PROJECT}/sandbox_environments", tags=["environments"])

_NAME_CHARS = 255
_REPOSITORIES_MOST = 100
# Names of the core's fields in this dialect.
_FIELDS = {"domains": "allowed_domains", "variables": "environment_variables"}

Text = Annotated[str, Field(min_length=1, max_length=_NAME_CHARS)]


class EnvironmentForm(Form):
    """What is to be different; what is absent or null stays as it is."""

    name: Text | None = None
    network_access_level: Literal["trusted", "full", "custom"] | None = None
    allowed_domains: list[Text] | None = None
    include_default_domains: bool | None = None
    repositories: Annotated[list[Text], Field(max_length=_REPOSITORIES_MOST)] | None = None
    environment_variables: dict[str, str] | None = None
    private: bool | None = None

    @field_validator("name")
    @classmethod
    def _not_blank(cls, value: str | None) -> str | None:
        if value is not None and not value.strip():
            raise ValueError("This field may not be blank.")
        return value and value.strip()

    def change(self) -> Change:
        """In the core's words."""
        return Change(
            name=self.name,
            network=self.network_access_level,
            domains=self.allowed_domains,
            default_domains=self.include_default_domains,
            repositories=self.repositories,
            variables=self.environment_variables,
            private=self.private,
        )


class NewEnvironmentForm(EnvironmentForm):
    """A new one has a name."""

    name: Text


@router.get("", summary="List sandbox environments")
async def list_environments(
    project: ProjectOf, grant: GrantOf, paging: PagingOf, services: ServicesOf
) -> dict[str, Any]:
    """Those of the project, but for the private ones of others; the newest first."""
    found = await services.environments.list(project, grant.holder)
    return paging.envelope([_object(each) for each in found[paging.span]], len(found))


@router.post("", summary="Make a sandbox environment", status_code=201)
async def make_environment(
    project: ProjectOf, grant: GrantOf, request: Request, services: ServicesOf
) -> dict[str, Any]:
    """The values of its variables are never shown again."""
    form = await read_form(request, NewEnvironmentForm, most_bytes=FORM_BYTES)
    try:
        return _object(await services.environments.create(project, grant.holder, form.change()))
    except InvalidBody as error:
        raise _of_this_dialect(error) from None


@router.get("/{environment_id}", summary="Get a sandbox environment")
async def get_environment(
    project: ProjectOf, environment_id: str, grant: GrantOf, services: ServicesOf
) -> dict[str, Any]:
    """One of them."""
    return _object(await services.environments.get(project, grant.holder, environment_id))


@router.patch("/{environment_id}", summary="Change a sandbox environment")
async def change_environment(
    project: ProjectOf, environment_id: str, grant: GrantOf, request: Request, services: ServicesOf
) -> dict[str, Any]:
    """What the body names; ``environment_variables`` takes the place of all that there were."""
    form = await read_form(request, EnvironmentForm, most_bytes=FORM_BYTES)
    try:
        return _object(await services.environments.update(project, grant.holder, environment_id, form.change()))
    except InvalidBody as error:
        raise _of_this_dialect(error) from None


@router.delete("/{environment_id}", summary="Delete a sandbox environment", status_code=204)
async def delete_environment(project: ProjectOf, environment_id: str, grant: GrantOf, services: ServicesOf) -> Response:
    """Runs that have not begun yet do not get its variables any more."""
    await services.environments.delete(project, grant.holder, environment_id)
    return Response(status_code=204)


def _object(environment: Environment) -> dict[str, Any]:
    return {
        "id": environment.id,
        "name": environment.name,
        "network_access_level": environment.network,
        "allowed_domains": environment.domains,
        "include_default_domains": environment.default_domains,
        "repositories": environment.repositories,
        "has_environment_variables": bool(environment.variables),
        "environment_variable_keys": environment.variables,
        "private": environment.private,
        "internal": False,
        "effective_domains": environment.domains if environment.network == "custom" else [],
        "created_by": user(environment.owner),
        "created_at": environment.created_at.isoformat(),
        "updated_at": environment.updated_at.isoformat(),
    }


def _of_this_dialect(error: InvalidBody) -> InvalidBody:
    """The same refusal, by this dialect's names of the fields."""
    faults = []
    for each in error.details["errors"]:
        name, bracket, rest = each["field"].partition("[")
        faults.append(Fault(_FIELDS.get(name, name) + bracket + rest, each["message"], each["validation"]))
    return InvalidBody.of(faults)
