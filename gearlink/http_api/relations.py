"""Contacts, blocks, privacy, and whether an account may be used. Each handler is one call of the domain."""

from typing import Final

from gearlink.accounts import Actor
from gearlink.calls import ContactForm, PrivacyForm
from gearlink.domain import Domain
from gearlink.errors import FORBIDDEN, LAST_OWNER, NOT_FOUND, TOO_MANY
from gearlink.http_api.table import PageQuery, Reply, Route
from gearlink.views import BlockView, ContactView, Page, PrivacyView


async def list_contacts(domain: Domain, actor: Actor, query: PageQuery) -> Reply:
    return 200, await domain.people.contacts(actor, query.limit, query.cursor)


async def put_contact(domain: Domain, actor: Actor, user_id: str, form: ContactForm) -> Reply:
    return 200, await domain.people.put_contact(actor, user_id, form)


async def remove_contact(domain: Domain, actor: Actor, user_id: str) -> Reply:
    await domain.people.remove_contact(actor, user_id)
    return 204, None


async def list_blocks(domain: Domain, actor: Actor, query: PageQuery) -> Reply:
    return 200, await domain.people.blocks(actor, query.limit, query.cursor)


async def block_user(domain: Domain, actor: Actor, user_id: str) -> Reply:
    await domain.people.block(actor, user_id)
    return 204, None


async def unblock_user(domain: Domain, actor: Actor, user_id: str) -> Reply:
    await domain.people.unblock(actor, user_id)
    return 204, None


async def read_privacy(domain: Domain, actor: Actor) -> Reply:
    return 200, await domain.people.privacy(actor)


async def change_privacy(domain: Domain, actor: Actor, form: PrivacyForm) -> Reply:
    return 200, await domain.people.change_privacy(actor, form)


async def delete_account(domain: Domain, actor: Actor) -> Reply:
    await domain.standing.delete_own(actor)
    return 204, None


async def suspend_user(domain: Domain, actor: Actor, user_id: str) -> Reply:
    await domain.standing.suspend_by(actor, user_id)
    return 204, None


async def lift_suspension(domain: Domain, actor: Actor, user_id: str) -> Reply:
    await domain.standing.lift_by(actor, user_id)
    return 204, None


ROUTES: Final[tuple[Route, ...]] = (
    Route(
        "GET", "/contacts", list_contacts, "The caller's contacts, by id",
        query=PageQuery, answers={200: Page[ContactView]},
    ),
    Route(
        "PUT", "/contacts/{userId}", put_contact, "Take somebody into one's contacts, or change their nickname",
        body=ContactForm, answers={200: ContactView}, refusals=(NOT_FOUND, TOO_MANY),
    ),
    Route(
        "DELETE", "/contacts/{userId}", remove_contact, "Take somebody out of one's contacts, if they are there",
        answers={204: None}, refusals=(NOT_FOUND,),
    ),
    Route(
        "GET", "/blocks", list_blocks, "Whom the caller has blocked, by id",
        query=PageQuery, answers={200: Page[BlockView]},
    ),
    Route(
        "PUT", "/blocks/{userId}", block_user, "Block somebody; they are not told",
        answers={204: None}, refusals=(NOT_FOUND, TOO_MANY),
    ),
    Route(
        "DELETE", "/blocks/{userId}", unblock_user, "Lift a block, if there is one",
        answers={204: None}, refusals=(NOT_FOUND,),
    ),
    Route(
        "GET", "/users/me/privacy", read_privacy, "What the caller lets others see and do",
        answers={200: PrivacyView},
    ),
    Route(
        "PATCH", "/users/me/privacy", change_privacy, "Change the keys that are present",
        body=PrivacyForm, answers={200: PrivacyView},
    ),
    Route(
        "DELETE", "/users/me", delete_account,
        "Delete one's own account: gone at once, erased after 30 days, until then taken back by a sign-in",
        answers={204: None}, refusals=(LAST_OWNER,),
    ),
    Route(
        "PUT", "/users/{userId}/suspension", suspend_user, "Suspend an account: it is signed out and kept as it is",
        needs="admin", answers={204: None}, refusals=(NOT_FOUND, FORBIDDEN),
    ),
    Route(
        "DELETE", "/users/{userId}/suspension", lift_suspension, "Lift a suspension, if there is one",
        needs="admin", answers={204: None}, refusals=(NOT_FOUND,),
    ),
)  # fmt: skip
