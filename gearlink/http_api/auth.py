"""Signing up, in and out, and the devices that are signed in. Each handler is one call of the domain."""

from gearlink.accounts import Actor
from gearlink.calls import RefreshForm, VerifyConfirm, VerifyRequest
from gearlink.cursors import foreign_cursor
from gearlink.domain import Domain
from gearlink.http_api.table import ID, PageQuery, Reply
from gearlink.views import Page


async def request_verification(domain: Domain, address: str, form: VerifyRequest) -> Reply:
    return 202, await domain.verification.request(form.phone_number, address)


async def confirm_verification(domain: Domain, address: str, form: VerifyConfirm) -> Reply:
    return 200, await domain.accounts.confirm(form, address)


async def refresh(domain: Domain, _address: str, form: RefreshForm) -> Reply:
    return 200, await domain.accounts.refresh(form)


async def logout(domain: Domain, actor: Actor) -> Reply:
    await domain.accounts.logout(actor)
    return 204, None


async def list_devices(domain: Domain, actor: Actor, query: PageQuery) -> Reply:
    """By device id. A user has so few that they are read at once, whatever the page."""
    if query.cursor is not None and not ID.fullmatch(query.cursor):
        raise foreign_cursor()
    devices = (await domain.accounts.devices(actor)).items
    left = sorted((each for each in devices if each.id > (query.cursor or "")), key=lambda each: each.id)
    items = left[: query.limit]
    return 200, Page(items=items, next=items[-1].id if len(left) > query.limit else None)


async def remove_device(domain: Domain, actor: Actor, device_id: str) -> Reply:
    await domain.accounts.remove_device(actor, device_id)
    return 204, None
