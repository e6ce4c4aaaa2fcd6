"""What a device takes of the rows in an archive, and the trail that says which of its own go into one."""

from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

from gearlink.sdk.e2ee import recovery
from gearlink.sdk.e2ee.records import Epoch, KeptIndex
from gearlink.sdk.secure import archiving, history
from gearlink.sdk.secure.trail import head, trailed
from tests.memory_vault import MemoryVault


def row(number: int, text: str = "", **more: Any) -> recovery.Row:
    message_id = f"01900000-0000-7000-8000-{number:012x}"
    room = "01900000-0000-7000-8000-00000000ffff"
    letter = f'{{"type":"message","conversationId":"{room}","count":1,"tempId":"t","kind":"text","content":"{text}"}}'
    fields = {"era": 5, "sequence": number, "message_id": message_id, "conversation_id": room, **more}
    return recovery.Row(
        sender_id=message_id, sender_device_id="d", created_at=1, kind="text", letter=letter if text else "", **fields
    )


def take(vault: MemoryVault, rows: Sequence[recovery.Row], eras: dict[str, int], now: int = 1000) -> int:
    def change(tx: Any) -> int:
        local = archiving._settle_eras(tx, eras)
        return sum(archiving._take(tx, each, local, now) for each in rows)

    return vault.do(trailed(change))


def texts(vault: MemoryVault) -> list[str]:
    room = "01900000-0000-7000-8000-00000000ffff"
    found = vault.look(lambda tx: [history.view(tx, kept, "") for kept in history.page(tx, room, now=0)])
    return [each.content or "" for each in reversed(found)]


def test_eras_of_another_device_are_named_as_this_one_names_them() -> None:
    vault = MemoryVault()
    vault.do(lambda tx: tx.put(Epoch("now", 300)))
    old, new = row(7, "before the restore", era=4), row(2, "after it", era=5)
    assert take(vault, [old, new, row(3, "by somebody who names no epoch", era=1)], {"then": 4, "now": 5}) == 3
    assert texts(vault) == ["by somebody who names no epoch", "before the restore", "after it"]
    assert vault.look(lambda tx: {each.epoch: each.era for each in tx.scan(Epoch)})["now"] == 300


def test_two_epochs_of_one_second_stay_two_eras() -> None:
    vault = MemoryVault()
    vault.do(lambda tx: tx.put(Epoch("now", 300)))
    assert take(vault, [row(1, "then", era=300)], {"then": 300}) == 1
    assert vault.look(lambda tx: sorted(each.era for each in tx.scan(Epoch))) == [299, 300]


def test_rows_come_once_and_the_newer_of_two_stays() -> None:
    vault, eras = MemoryVault(), {"now": 5}
    assert (
        take(vault, [row(1, "one"), row(1, "one"), row(1, "edited", edited_at=9), row(1, "old", edited_at=3)], eras)
        == 1
    )
    assert texts(vault) == ["edited"]
    assert take(vault, [row(1, deleted_at=10)], eras) == 0 and texts(vault) == [""]
    assert take(vault, [row(1, "risen again", edited_at=11)], eras) == 0 and texts(vault) == [""]


def test_what_disappeared_or_is_no_message_is_not_taken() -> None:
    vault, eras = MemoryVault(), {"now": 5}
    vault.do(lambda tx: tx.put(KeptIndex(row(1).message_id, "", 0, 0)))
    over, broken = row(2, "over", expires_at=1000), replace(row(3, "x"), letter="[")
    assert (
        take(vault, [row(1, "deleted before it came"), over, broken, replace(row(4, "x"), kind="control")], eras) == 0
    )
    assert texts(vault) == []


def test_the_trail_names_each_message_once_in_the_order_of_changes_and_no_number_twice() -> None:
    vault, eras = MemoryVault(), {"now": 5}
    take(vault, [row(1, "one"), row(2, "two")], eras)
    take(vault, [row(1, "one again", edited_at=9)], eras)
    following = vault.look(lambda tx: [each.sequence for each in archiving._following(tx, 0)])
    assert following == [2, 1] and vault.look(head) == 3
    vault.do(trailed(lambda tx: history.expire(tx, [row(1).message_id])))
    assert vault.look(lambda tx: [each.sequence for each in archiving._following(tx, 0)]) == [2]
    take(vault, [row(3, "three")], eras)
    assert vault.look(head) == 4, "3 was passed by whoever was at the end of the trail"
