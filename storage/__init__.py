"""What GearLink keeps: the records, the seam that the rest of the server sees, and its implementations on a disk.

Everything above asks the protocols of `storage.store` and never an engine. This package imports `config` and nothing
else of ours; it knows no guest, no socket and no rule about who may do what.
"""
