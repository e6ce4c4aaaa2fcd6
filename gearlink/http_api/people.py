"""Profiles and finding people. Each handler is one call of the domain."""

from gearlink.accounts import Actor
from gearlink.calls import USERNAME, DiscoverForm, ProfileForm
from gearlink.http_api.table import Domain, Reply, UsernameQuery, foreign_cursor
from gearlink.protocol import Page, User


async def read_own_profile(domain: Domain, actor: Actor) -> Reply:
    return 200, await domain.accounts.me(actor)


async def change_own_profile(domain: Domain, actor: Actor, form: ProfileForm) -> Reply:
    return 200, await domain.accounts.change_profile(actor, form)


async def read_user(domain: Domain, actor: Actor, user_id: str) -> Reply:
    return 200, await domain.accounts.user(actor, user_id)


async def find_users(domain: Domain, actor: Actor, query: UsernameQuery) -> Reply:
    if query.cursor is not None:
        raise foreign_cursor()  # one page is all that there ever is
    name = query.username.removeprefix("@").lower()
    if not (query.username.isascii() and USERNAME.match(name)):  # some letters become ASCII in lower case
        return 200, Page[User](items=[])
    return 200, await domain.accounts.by_username(actor, name)


async def discover_contacts(domain: Domain, actor: Actor, form: DiscoverForm) -> Reply:
    return 200, await domain.accounts.discover(actor, form)
