"""A second, independent implementation of GearLink's end-to-end encryption, written from docs/encryption.md alone.

It shares no line with `gearlink/sdk/e2ee` and uses none of its libraries for X3DH and the Double Ratchet: only the
primitives of `cryptography` and PyNaCl. It is a reference for authors of other clients and the partner of the code
under test in `tests/test_interop.py`; it makes the vectors in `tests/vectors`. It keeps nothing on disk, erases
nothing from memory and is not fast: it is no library for a client.

| module | section of docs/encryption.md |
| --- | --- |
| `primitives` | Conventions |
| `agreement` | Keys of a device, Sessions: X3DH, the `prekey` form of Envelopes |
| `ratchet` | Sessions: Double Ratchet, the `message` form of Envelopes |
| `sender_keys` | Sender keys |
| `letters` | Letters |
| `attachments` | Attachments, in Letters |
| `rosters` | Account key and certificates, Rosters |
| `safety` | Safety numbers, the code of Linking a device |
| `archives` | Backup and recovery key |
"""
