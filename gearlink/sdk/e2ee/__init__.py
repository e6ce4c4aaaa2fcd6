"""End-to-end encryption on the client: keys, sessions, letters, and the vault that they are kept in.

From below: `records` what is kept and `store` how it is reached; `agreement`, `sessions`, `sender_keys` the protocols;
`letters`, `certificates`, `rosters`, `safety`, `recovery`, `attachments` one thing each; `cipher` the small interface
over all of that; `vault` the encrypted file. None of these knows a socket. `docs/encryption.md` is what they follow.
"""
