"""Profiles and finding people. Each handler is one call of the domain."""

from gearlink.accounts import Actor
from gearlink.calls import USERNAME, DiscoverForm, ProfileForm
from gearlink.cursors import foreign_cursor
from gearlink.domain import Domain
from gearlink.http_api.table import Blob, Reply, UsernameQuery
from gearlink.views import Page, User


async def read_own_profile(domain: Domain, actor: Actor) -> Reply:
    return 200, await domain.profiles.me(actor)


async def change_own_profile(domain: Domain, actor: Actor, form: ProfileForm) -> Reply:
    return 200, await domain.profiles.change_profile(actor, form)


async def read_user(domain: Domain, actor: Actor, user_id: str) -> Reply:
    return 200, await domain.profiles.user(actor, user_id)


async def find_users(domain: Domain, actor: Actor, query: UsernameQuery) -> Reply:
    if query.cursor is not None:
        raise foreign_cursor()  # one page is all that there ever is
    name = query.username.removeprefix("@").lower()
    if not (query.username.isascii() and USERNAME.match(name)):  # some letters become ASCII in lower case
        return 200, Page[User](items=[])
    return 200, await domain.profiles.by_username(actor, name)


async def set_own_avatar(domain: Domain, actor: Actor, data: bytes) -> Reply:
    return 200, await domain.avatars.set_own(actor, data)


async def remove_own_avatar(domain: Domain, actor: Actor) -> Reply:
    await domain.avatars.remove_own(actor)
    return 204, None


async def read_avatar(domain: Domain, actor: Actor, avatar_id: str) -> Reply:
    avatar = await domain.avatars.read(actor, avatar_id)
    return 200, Blob(avatar.data, avatar.mime_type, avatar.avatar_id)


async def discover_contacts(domain: Domain, actor: Actor, form: DiscoverForm) -> Reply:
    return 200, await domain.profiles.discover(actor, form)
