"""Encrypted conversations for programs: a client that seals what it sends and opens what it hears.

`SecureClient` is what callers use. Below it: `company` who is in a conversation and with which devices, `posting` what is
said, `receiving` what is heard, `repairs` what could not be read, `keeping` one's own keys, `told` what is noticed on
the way, and `device` what they all share. The cryptography is in `gearlink.sdk.e2ee`; here are the calls around it.
"""
