"""Output of processes in the bucket: what outlives their machine, in pieces that are named by their first byte.

A byte of the output stands in the bucket at the offset that it had in the guest: known secret values are masked by as
many asterisks. Two writers that believe in the same end meet at one key, which only one of them gets.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator

from pydantic import ValidationError

from foundation.errors import Conflict
from foundation.service.processes import ProcessRecord
from storage.bucket import ObjectInfo, ObjectStore
from storage.layout import Place, piece_offset
from storage.redaction import Piece, Redactor
from storage.segments import GUEST_STREAMS, GuestStream

PIECE_BYTES = 2**20
# A process that says a word a second for a month is to leave thousands of pieces, not millions.
_FLUSH_SECONDS = 1.0
_FLUSH_SECONDS_MOST = 60.0
_PIECES_FOR_A_SECOND = 30


class OutputWriter:
    """Stores the output of one process. ``most`` bytes of each stream are kept. For one thread at a time.

    Call ``resume`` first, and feed each stream from the offset that it returns. All methods may raise
    BucketUnavailable, after which nothing is lost and the call can be repeated.
    """

    def __init__(
        self,
        store: ObjectStore,
        place: Place,
        key: str,
        redactor: Redactor,
        most: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        masking = redactor.masking()
        self._streams = {stream: _Stream(store, place, key, stream, masking, most, clock) for stream in GUEST_STREAMS}

    def resume(self) -> dict[GuestStream, int]:
        """The byte offsets from which to feed, as the bucket has them. Forgets what was not stored."""
        return {name: stream.resume() for name, stream in self._streams.items()}

    def feed(self, stream: GuestStream, offset: int, data: bytes) -> None:
        """Take bytes that stand at ``offset``. Bytes fed before are dropped; a gap raises Conflict."""
        self._streams[stream].feed(offset, data)

    def flush(self, *, last: bool = False) -> None:
        """Store what is held, if it is time to; with ``last`` all of it, as nothing follows."""
        for stream in self._streams.values():
            stream.flush(last=last)

    def pause(self) -> None:
        """Store what is held now, but for an end that may be the beginning of a secret value: more may follow."""
        for stream in self._streams.values():
            stream.flush(last=False, now=True)


class _Stream:
    """One stream of a process: stored up to ``_stored``, fed up to the end of ``_raw``, masked as far as decided.

    A piece ends where the redaction can begin anew: never within a value, whose rest alone nobody would know.
    """

    def __init__(
        self,
        store: ObjectStore,
        place: Place,
        key: str,
        name: GuestStream,
        redactor: Redactor,
        most: int,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._place, self._key, self._name = place, key, name
        self._redactor = redactor
        self._most = most
        self._clock = clock
        self._stored = self._pieces = 0
        self._raw = bytearray()
        self._masked = bytearray()
        # Where in ``_masked`` a value begins and ends.
        self._values: deque[tuple[int, int]] = deque()
        self._redaction = redactor.stream()
        self._flushed_at = clock()

    def resume(self) -> int:
        self._raw.clear()
        self._begin_behind_stored()
        return self._stored

    def feed(self, offset: int, data: bytes) -> None:
        fed = self._stored + len(self._raw)
        if fed >= self._most:
            return
        if offset > fed:
            raise Conflict(f"{self._name} was fed byte {offset} behind byte {fed}; read on from there", expected=fed)
        new = data[fed - offset :][: self._most - fed]
        self._raw += new
        self._mask(new)
        while len(self._masked) >= PIECE_BYTES:
            self._put()

    def flush(self, *, last: bool, now: bool = False) -> None:
        if last:
            self._take(self._redaction.finish())
        patience = min(_FLUSH_SECONDS_MOST, _FLUSH_SECONDS + self._pieces / _PIECES_FOR_A_SECOND)
        if last or now or self._clock() - self._flushed_at >= patience:
            while self._masked:
                self._put()
            self._flushed_at = self._clock()

    def _mask(self, data: bytes) -> None:
        self._take(self._redaction.feed(data))

    def _take(self, pieces: list[Piece]) -> None:
        for piece in pieces:
            if piece.replaced:
                self._values.append((len(self._masked), len(self._masked) + len(piece.data)))
            self._masked += piece.data

    def _cut(self) -> int:
        """Where the next piece ends: within no value, and so far on that it is not empty."""
        for begin, end in self._values:
            if begin < PIECE_BYTES < end:
                return end
        return min(PIECE_BYTES, len(self._masked))

    def _put(self) -> None:
        piece = bytes(self._masked[: self._cut()])
        key = self._place.process_piece_key(self._key, self._name, self._stored)
        if self._store.put(key, piece, if_absent=True):
            self._stored += len(piece)
            self._pieces += 1
            del self._masked[: len(piece)]
            del self._raw[: len(piece)]
            self._values = deque((b - len(piece), e - len(piece)) for b, e in self._values if e > len(piece))
        else:
            # Another writer was here, or this one with an answer that was lost: what it stored counts.
            self._begin_behind_stored()

    def _begin_behind_stored(self) -> None:
        before = self._stored
        pieces = list(self._store.list(self._place.process_pieces_prefix(self._key, self._name)))
        self._pieces = len(pieces)
        self._stored = piece_offset(pieces[-1].key) + pieces[-1].size if pieces else 0
        del self._raw[: self._stored - before]
        self._masked.clear()
        self._values.clear()
        self._redaction = self._redactor.stream()
        self._mask(bytes(self._raw))


def write_record(store: ObjectStore, place: Place, record: ProcessRecord) -> None:
    """Have the bucket say this of a process whose output is kept."""
    store.put(place.process_record_key(record.key), record.model_dump_json().encode(), content_type="application/json")


def kept_record(store: ObjectStore, place: Place, key: str) -> ProcessRecord | None:
    """What the bucket says of a process; None when its output is not kept."""
    return _record_of(store.get(place.process_record_key(key)))


def kept_records(store: ObjectStore, place: Place) -> list[ProcessRecord]:
    """What the bucket says of every process of a resource whose output is kept."""
    found = (_record_of(store.get(each.key)) for each in list(store.list(place.process_records_prefix)))
    return [record for record in found if record is not None]


def kept_output(store: ObjectStore, place: Place, key: str, stream: GuestStream, offset: int = 0) -> Iterator[bytes]:
    """What is kept of a stream, from a byte on."""
    for piece in _pieces_from(store, place, key, stream, offset):
        begin = piece_offset(piece.key)
        if begin + piece.size > offset and (data := store.get(piece.key)):
            yield data[max(0, offset - begin) :]


def _pieces_from(store: ObjectStore, place: Place, key: str, stream: GuestStream, offset: int) -> list[ObjectInfo]:
    """The pieces that hold a byte and all behind it, and perhaps a few before."""
    prefix = place.process_pieces_prefix(key, stream)
    # A piece is longer than usual only where a secret value lies across its end.
    early = max(0, offset - 2 * PIECE_BYTES)
    pieces = list(store.list(prefix, start_after=place.process_piece_key(key, stream, early) if early else None))
    if early and (not pieces or piece_offset(pieces[0].key) > offset):
        return list(store.list(prefix))
    return pieces


def _record_of(body: bytes | None) -> ProcessRecord | None:
    try:
        return ProcessRecord.model_validate_json(body) if body else None
    except ValidationError:
        return None
