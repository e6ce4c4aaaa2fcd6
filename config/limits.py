"""Every cap and time-out that is part of the contract or of the data, in one place.

What an operator may choose lives in `config.settings`; what is here may not differ between two servers, because clients,
stored records or the proofs count on it. Units and bounds stand last in each name. The relations between the numbers are
asserted when the module is imported, so a careless edit cannot start a server.
"""

from typing import Final

# --- protocol: what a client may send -------------------------------------------------------------------------------
CONTENT_BYTES_MAX: Final = 16 * 1024  # protocol page: `content` is 16 KiB at most, counted in UTF-8
TEMP_ID_CHARS_MAX: Final = 128
REF_CHARS_MAX: Final = 128
NAME_CHARS_MAX: Final = 128
DESCRIPTION_CHARS_MAX: Final = 2048
DISPLAY_NAME_CHARS_MAX: Final = 64
BIO_CHARS_MAX: Final = 512
USERNAME_CHARS_MIN: Final = 3
USERNAME_CHARS_MAX: Final = 32
DEVICE_NAME_CHARS_MAX: Final = 64
TOKEN_CHARS_MAX: Final = 4096
MEMBER_IDS_PER_CALL_MAX: Final = 1000
MENTIONS_MAX: Final = 100
CURSORS_MAX: Final = 2000  # some 112 KB as JSON, which fits into one frame with its token
CURSOR_CHARS_MAX: Final = 512
HASHES_PER_CALL_MAX: Final = 500
SEQUENCE_MAX: Final = 2**53 - 1  # the largest integer that every JSON reader keeps exact (RFC 8259 §6)
PAGE_DEFAULT: Final = 50
PAGE_MAX: Final = 200

# --- people and devices ----------------------------------------------------------------------------------------------
DEVICES_PER_USER_MAX: Final = 32
VERIFICATION_TRIES_MAX: Final = 5
VERIFICATION_CODE_DIGITS: Final = 6
VERIFICATION_RESEND_SECONDS: Final = 30
MEMBERS_SHOWN_MAX: Final = 200  # a conversation carries its member list inline up to this many

# --- sockets ---------------------------------------------------------------------------------------------------------
HEAD_SECONDS_MAX: Final = 10.0  # TLS handshake and request head together
HEAD_BYTES_MAX: Final = 16 * 1024
BODY_SECONDS_MAX: Final = 30.0  # one REST body, of body_kib at most
AUTH_SECONDS_MAX: Final = 10.0  # protocol page: the first frame, within 10 s
WRITE_SECONDS_MAX: Final = 30.0  # one write to a peer that does not read
CLOSE_SECONDS_MAX: Final = 2.0  # the closing handshake of one socket
MALFORMED_FRAMES_MAX: Final = 5  # protocol page: a malformed frame closes the socket only when it repeats
REFUSED_FLOOD_MAX: Final = 500  # rate-limited frames, less those that time has forgiven, before 4429
SEND_WINDOW_MAX: Final = 256  # sends of one socket that wait for the disk
TYPING_SECONDS_MAX: Final = 6.0
RECEIPTS_FLUSH_SECONDS: Final = 0.05  # watermarks of this long are stored and told together
RECEIPTS_TOLD_MEMBERS_MAX: Final = 256  # in larger conversations delivered marks are stored, not broadcast

# --- the log ---------------------------------------------------------------------------------------------------------
WRITE_QUEUE_MAX: Final = 4096  # changes that wait for the one writer; then callers wait
BATCH_CHANGES_MAX: Final = 512  # about 15 ms of the loop
SYNC_PAGE_EVENTS: Final = 200
SYNC_FIRST_EVENTS_MAX: Final = 1000  # what a device that was never in a conversation gets replayed of it
UNREAD_COUNT_MAX: Final = 999
UNREAD_SCAN_EVENTS_MAX: Final = 2000
DEPARTURE_DAYS: Final = 30  # how long a device may be away and is still told what it is no longer part of
DEPARTURES_TOLD_MAX: Final = 1000
IDEMPOTENCY_DAYS: Final = 8  # protocol page promises 7: a day to spare for clocks that differ

# --- waiting for one another -----------------------------------------------------------------------------------------
SMS_SECONDS_MAX: Final = 20.0
SMS_QUEUE_MAX: Final = 256
SWEEP_SECONDS: Final = 3600.0
SWEEP_ROWS_PER_STEP: Final = 500

assert PAGE_DEFAULT <= PAGE_MAX <= SYNC_PAGE_EVENTS <= SYNC_FIRST_EVENTS_MAX
assert UNREAD_COUNT_MAX < UNREAD_SCAN_EVENTS_MAX
assert BATCH_CHANGES_MAX <= WRITE_QUEUE_MAX
assert SEND_WINDOW_MAX < WRITE_QUEUE_MAX, "one socket may not fill the writer's queue"
assert IDEMPOTENCY_DAYS > 7
assert AUTH_SECONDS_MAX <= HEAD_SECONDS_MAX
assert CLOSE_SECONDS_MAX < WRITE_SECONDS_MAX
assert RECEIPTS_FLUSH_SECONDS < 1
