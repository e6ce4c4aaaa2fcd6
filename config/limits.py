"""Every cap and time-out that is part of the contract or of the data, in one place.

What an operator may choose lives in `config.settings`; what is here may not differ between two servers, because clients,
stored records or the proofs count on it. Units and bounds stand last in each name. The relations between the numbers are
asserted when the module is imported, so a careless edit cannot start a server.
"""

from typing import Final

# --- protocol: what a client may send -------------------------------------------------------------------------------
CONTENT_BYTES_MAX: Final = 16 * 1024  # protocol page: `content` is 16 KiB at most, counted in UTF-8
CIPHERTEXT_BYTES_MAX: Final = (
    90 * 1024
)  # of one body: a letter of the largest content, escaped fivefold; 120 KiB of text
ENVELOPES_MAX: Final = 2000  # of one message; how many fit, the size of a frame or body says
KEY_ID_CHARS_MAX: Final = 64  # of a sender key
CONTENT_DEPTH_MAX: Final = 8  # of content that is JSON: the levels of its objects and lists
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
MEDIA_PER_MESSAGE_MAX: Final = 10
EMOJI_CHARS_MAX: Final = 16  # code points of one emoji: the longest in use, families and flags, have some ten
REACTIONS_PER_MESSAGE_MAX: Final = 50  # different emojis on one message
REACTIONS_PER_USER_MAX: Final = 20  # of one user on one message
REACTORS_SHOWN_MAX: Final = 20  # users named in the tally of one emoji; the others are on a page of their own
CHANGES_TOLD_PER_SECOND: Final = 10  # reactions or votes of one message; a storm of more is told in summary
QUOTE_CHARS_MAX: Final = 200  # of a quoted message's content in the reply
POLL_OPTIONS_MAX: Final = 20
POLL_OPTION_CHARS_MAX: Final = 200
EXPIRY_SECONDS_MIN: Final = 1
EXPIRY_SECONDS_MAX: Final = 366 * 86_400
PINS_MAX: Final = 100  # of one conversation
REVISIONS_MAX: Final = 100  # edits of one message that the history keeps; the oldest go first
SCHEDULED_PER_USER_MAX: Final = 200
SCHEDULED_DAYS_MAX: Final = 366
WATCHED_MAX: Final = 500  # whose presence one socket watches
WATCHES_PER_SECOND: Final = 5.0  # `presence:watch` of one device
WATCHES_BURST: Final = 10
WATCHED_PER_SECOND: Final = 250.0  # users in them, twice WATCHED_MAX at once
CONTACTS_MAX: Final = 10_000
BLOCKS_MAX: Final = 10_000
JOIN_CODE_CHARS_MIN: Final = 16
JOIN_CODE_CHARS_MAX: Final = 64
JOIN_LINKS_MAX: Final = 50  # of one conversation
JOIN_REQUESTS_MAX: Final = 1000
JOIN_TRIES_PER_MINUTE: Final = 30  # of one user, right codes or wrong ones
STAFF_TOLD_MAX: Final = 100  # owners and admins who are told of somebody who asks to be let in
STAFF_SCAN_MEMBERS_MAX: Final = 1000  # among whom they are looked for
DRAFTS_PER_SECOND: Final = 5  # of one user; a client keeps what is typed some seconds apart
DRAFTS_BURST: Final = 30
SYNC_WAIT_SECONDS_MAX: Final = 60
CHANGES_PER_SECOND: Final = 10  # of one user to conversations and who is in them, all of which every member is told
CHANGES_BURST: Final = 1000
PEOPLE_ADDED_PER_SECOND: Final = 5  # by one user, to conversations new and old
PEOPLE_ADDED_BURST: Final = 20_000  # two groups of the largest size
CURSORS_MAX: Final = 2000  # some 112 KB as JSON, which fits into one frame with its token
CURSOR_CHARS_MAX: Final = 512
HASHES_PER_CALL_MAX: Final = 500
SEQUENCE_MAX: Final = 2**53 - 1  # the largest integer that every JSON reader keeps exact (RFC 8259 §6)
PAGE_DEFAULT: Final = 50
PAGE_MAX: Final = 200

# --- people and devices ----------------------------------------------------------------------------------------------
DEVICES_PER_USER_MAX: Final = 32
USERNAME_CHANGES_PER_DAY: Final = 10  # each one given up is kept for a while, so nobody may give up any number
USERNAME_HOLD_DAYS: Final = 30  # how long a username that was given up is its last holder's alone
ACCOUNT_ERASURE_DAYS: Final = 30  # how long a deletion may be taken back
DISCOVERERS_PER_ADDRESS: Final = 5  # a household's worth: the budget of an address in budgets of one user
VERIFICATION_TRIES_MAX: Final = 5
VERIFICATION_CODE_DIGITS: Final = 6
VERIFICATION_RESEND_SECONDS: Final = 30
MEMBERS_SHOWN_MAX: Final = 200  # a conversation carries its member list inline up to this many
AVATAR_BYTES_MAX: Final = 512 * 1024
AVATAR_PIXELS_SIDE_MAX: Final = 4096
AVATAR_CHANGES_PER_HOUR: Final = 60  # by one user, of their own and of conversations

# --- keys of devices -------------------------------------------------------------------------------------------------
KEY_ID_MAX: Final = 2**31 - 1
ONE_TIME_KEYS_MAX: Final = 200  # that the server keeps of one device
ONE_TIME_KEYS_LOW: Final = 20  # below that its owner is told
KEY_UPLOADS_PER_HOUR: Final = 120  # of one device
FORMER_KEYS_MAX: Final = 64  # identity keys of one device that do not come back
IDENTITY_CHANGES_PER_DAY: Final = 10  # of one user; each is told to many
IDENTITY_TOLD_CONVERSATIONS_MAX: Final = 500  # whose members are told of it, and looked through to find them
IDENTITY_TOLD_MEMBERS_MAX: Final = 256  # in larger ones nobody is told: who sends there is refused and asks anew
DEVICE_LIST_USERS_MAX: Final = 10_000  # whose devices are kept in memory, some KB each
DEVICE_LIST_PLACES_MAX: Final = 50_000  # members, together, of the conversations whose device lists are kept in memory
DEVICE_LIST_USERS_PER_STEP: Final = 100  # read in one change
KEY_CLAIM_TARGETS_MIN: Final = 25  # whom a caller's budget is for: one person gets no more than a share of it
KEY_CLAIMS_OF_ONE_MIN: Final = (
    40  # an hour, of one person, where the whole budget allows it: for all devices they may have
)

# --- end-to-end encryption: what the server keeps and cannot read -----------------------------------------------------
E2EE_MEMBERS_MAX: Final = 1000  # of an encrypted group or channel: what is sent there is given to each of their devices
ROSTER_STATEMENT_BYTES_MAX: Final = 128 * 1024  # one statement can name all members
ROSTER_CHANGES_MAX: Final = E2EE_MEMBERS_MAX  # in one statement
ROSTER_STATEMENTS_MAX: Final = 50_000  # of one conversation
ROSTER_BYTES_MAX: Final = 32 * 1024 * 1024  # of all of them together
ROSTER_PAGE_BYTES_MAX: Final = 512 * 1024  # of statements; an answer over it takes no further ones
ARCHIVES_PER_USER_MAX: Final = 8
ARCHIVE_CHUNK_BYTES_MAX: Final = 192 * 1024 + 1024  # what a client packs into one, and what sealing and packing add
ARCHIVE_CHUNKS_MAX: Final = 100_000  # of one archive
ARCHIVE_WRITES_PER_MINUTE: Final = 600  # of one user
ARCHIVE_CHUNKS_PER_STEP: Final = 500  # erased in one change
TRANSFER_DAYS: Final = 7  # how long a new device has to fetch the history that another one put there
DECRYPTION_REPORTS_PER_HOUR: Final = 12  # of one device
DECRYPTION_COUNT_MAX: Final = 100_000  # of one reason in one report
LARGE_ROWS_PER_STEP: Final = 20  # records of up to ROSTER_STATEMENT_BYTES_MAX that are read to be erased in one change

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
RECEIPTS_JITTER_SECONDS: Final = 0.2  # at most this much later: what a receipt's time tells of its device is blurred
RECEIPTS_PENDING_MAX: Final = 50_000  # marks that gather; whoever brings one more waits until they are stored
RECEIPTS_TOLD_MEMBERS_MAX: Final = 256  # in larger conversations delivered marks are stored, not broadcast
PRESENCE_GRACE_SECONDS: Final = 2.0  # without a socket before a user is offline: a reconnect is no news
PRESENCE_TOLD_SECONDS: Final = 1.0  # between two changes of a user that are told

# --- the log ---------------------------------------------------------------------------------------------------------
WRITE_QUEUE_MAX: Final = 4096  # changes that wait for the one writer; then callers wait
BATCH_CHANGES_MAX: Final = 512  # about 15 ms of the loop, of small ones
BATCH_SECONDS_MAX: Final = 0.02  # of the loop: then what has run is written, and the rest comes after it
SYNC_PAGE_EVENTS: Final = 200
SYNC_FIRST_EVENTS_MAX: Final = 1000  # what a device that was never in a conversation gets replayed of it
SYNC_ANSWER_BYTES_MAX: Final = 1024 * 1024  # of JSON; an answer over it takes no further events
SYNC_VIEWS_MAX: Final = 200  # conversations described in one answer
SYNC_WAITING_PER_USER_MAX: Final = 8  # calls that wait for something to tell
HISTORY_STEPS_MAX: Final = (
    10  # looks for a page; what a reader has hidden may leave it short, and it says where to go on
)
UNREAD_COUNT_MAX: Final = 999
UNREAD_SCAN_EVENTS_MAX: Final = 2000
LAST_MESSAGE_SCAN_EVENTS_MAX: Final = 50  # events before the newest message, where a member may not see that one
DEPARTURE_DAYS: Final = 30  # how long a device may be away and is still told what it is no longer part of
DEPARTURES_TOLD_MAX: Final = 1000
IDEMPOTENCY_DAYS: Final = 8  # protocol page promises 7: a day to spare for clocks that differ

# --- under pressure --------------------------------------------------------------------------------------------------
# From the first number on typing is shed, then presence, receipts, sign-ups, and from the last one on messages.
PRESSURE_LAG_MS: Final = (250, 400, 600, 1000, 2000)  # how late the loop comes to what is due
PRESSURE_BACKLOG_SHARES: Final = (0.25, 0.5, 0.75, 1.0, 1.5)  # of WRITE_QUEUE_MAX; above 1: callers wait for room
PRESSURE_PROBE_SECONDS: Final = 0.1
PRESSURE_CALM_SECONDS: Final = 1.0  # before the next lower level
SHED_RETRY_SECONDS: Final = 1.0  # what is refused may come back after once to twice this
RECEIPTS_SHED_SECONDS: Final = 2.0  # while receipts are shed, in place of RECEIPTS_FLUSH_SECONDS

# --- waiting for one another -----------------------------------------------------------------------------------------
SMS_SECONDS_MAX: Final = 20.0
SMS_QUEUE_MAX: Final = 256
ERASED_ROWS_MAX: Final = 100  # reactions, and votes, that go at once with their message; a timer takes the others
EXPIRED_PER_CHANGE_MAX: Final = 20  # messages that disappear in one change
ENVELOPES_ERASED_MAX: Final = 1000  # in one change; what is left of them falls to a later one
CIPHERTEXT_SECONDS: Final = 3.0  # after an acknowledgement, before what everybody has is dropped
CIPHERTEXT_ENTRIES_PER_STEP: Final = 100
TIMER_SECONDS: Final = 1.0  # how late what is due may be
TIMER_ROWS_PER_STEP: Final = 200
TIMER_RETRY_SECONDS: Final = 60.0  # when what failed is tried again
SWEEP_SECONDS: Final = 3600.0
SWEEP_ROWS_PER_STEP: Final = 500

assert PAGE_DEFAULT <= PAGE_MAX <= SYNC_PAGE_EVENTS <= SYNC_FIRST_EVENTS_MAX
assert SYNC_ANSWER_BYTES_MAX > CONTENT_BYTES_MAX * 6, "one message, every character escaped"
assert CIPHERTEXT_BYTES_MAX >= 5 * CONTENT_BYTES_MAX, "a letter of the largest content, escaped once and in a resend"
assert SYNC_ANSWER_BYTES_MAX > 4 * (-(-CIPHERTEXT_BYTES_MAX // 3)), "one body"
assert UNREAD_COUNT_MAX < UNREAD_SCAN_EVENTS_MAX
assert SYNC_PAGE_EVENTS <= UNREAD_SCAN_EVENTS_MAX
assert 2 * ERASED_ROWS_MAX * EXPIRED_PER_CHANGE_MAX <= 5000, "one change may not hold the loop for 50 ms"
assert E2EE_MEMBERS_MAX <= DEVICE_LIST_USERS_MAX, "the devices of one conversation fit"
assert E2EE_MEMBERS_MAX <= DEVICE_LIST_PLACES_MAX
assert 0 < ONE_TIME_KEYS_LOW < ONE_TIME_KEYS_MAX
assert ONE_TIME_KEYS_MAX <= SWEEP_ROWS_PER_STEP, "those of one device go in one change"
assert ROSTER_STATEMENT_BYTES_MAX >= 128 * ROSTER_CHANGES_MAX, "a change takes some 125 bytes, and a head 500"
assert ROSTER_STATEMENT_BYTES_MAX <= ROSTER_PAGE_BYTES_MAX < ROSTER_BYTES_MAX
assert ARCHIVE_CHUNKS_PER_STEP <= SWEEP_ROWS_PER_STEP
assert STAFF_TOLD_MAX <= STAFF_SCAN_MEMBERS_MAX
assert BATCH_CHANGES_MAX <= WRITE_QUEUE_MAX
assert BATCH_SECONDS_MAX < 0.05, "no batch may hold the loop for longer, but by its last change"
assert SEND_WINDOW_MAX < WRITE_QUEUE_MAX, "one socket may not fill the writer's queue"
assert IDEMPOTENCY_DAYS > 7
assert AUTH_SECONDS_MAX <= HEAD_SECONDS_MAX
assert CLOSE_SECONDS_MAX < WRITE_SECONDS_MAX
assert RECEIPTS_FLUSH_SECONDS < 1
assert list(PRESSURE_LAG_MS) == sorted(set(PRESSURE_LAG_MS)), "what is shed first needs the lowest threshold"
assert list(PRESSURE_BACKLOG_SHARES) == sorted(set(PRESSURE_BACKLOG_SHARES))
assert len(PRESSURE_LAG_MS) == len(PRESSURE_BACKLOG_SHARES)
assert PRESSURE_LAG_MS[0] > 50, "what a piece of work may hold the loop is no pressure"
assert PRESSURE_BACKLOG_SHARES[0] * WRITE_QUEUE_MAX >= BATCH_CHANGES_MAX, "nor is one full batch"
assert PRESSURE_BACKLOG_SHARES[0] * WRITE_QUEUE_MAX > SEND_WINDOW_MAX, "one socket alone sheds nothing"
assert PRESSURE_BACKLOG_SHARES[-1] > 1, "a full queue holds callers up; messages are refused only beyond that"
assert PRESSURE_PROBE_SECONDS < PRESSURE_CALM_SECONDS
assert RECEIPTS_FLUSH_SECONDS + RECEIPTS_JITTER_SECONDS < RECEIPTS_SHED_SECONDS
assert PRESENCE_TOLD_SECONDS <= PRESENCE_GRACE_SECONDS
