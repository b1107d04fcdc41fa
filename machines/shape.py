"""The shape of a machine: what its guest is made of, how a record keeps it, and when one machine serves for another.

In a record it is fields beside others, as in records of every version: CPUs and memory from the reservation on, the
image's digest, the acceleration and the parts of its memory from when the machine is begun.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

from machines.images.store import Image

# The part of a guest's memory that it uses first: what it has taken by the time of its snapshot, and some more.
NEAR_BYTES = 256 * 2**20


class Sized(Protocol):
    """What has the size of a guest, its memory in bytes: a reservation, a record, a snapshot, a shape."""

    @property
    def cpus(self) -> int: ...

    @property
    def memory_bytes(self) -> int: ...


class Made(Sized, Protocol):
    """What also says what it was made of, once it was made: a record, a snapshot."""

    @property
    def image_digest(self) -> str | None: ...

    @property
    def acceleration(self) -> str | None: ...


class Kept(Made, Protocol):
    """What also says in which parts its memory is: a record, a shape."""

    @property
    def far_memory(self) -> bool: ...


@dataclass(frozen=True)
class Shape:
    """All that a guest is made of: guests of one shape differ in nothing until they have an identity.

    ``far_memory``: what is beyond NEAR_BYTES of its memory is a part of its own.
    """

    image: Image
    cpus: int
    memory_bytes: int
    acceleration: str
    far_memory: bool = False

    @property
    def image_digest(self) -> str:
        return self.image.digest


def new_shape(image: Image, cpus: int, memory_bytes: int, acceleration: str) -> Shape:
    """The shape of a machine that is to be made."""
    return Shape(image, cpus, memory_bytes, acceleration, far_memory=memory_bytes > 2 * NEAR_BYTES)


def shape_of(size: Sized, image: Image, acceleration: str) -> Shape:
    """The same for one of this size."""
    return new_shape(image, size.cpus, size.memory_bytes, acceleration)


def shape_again(made: Kept, image: Image, acceleration: str) -> Shape:
    """The shape that a machine was made in, by whatever version."""
    return replace(shape_of(made, image, acceleration), far_memory=made.far_memory)


def recorded(made: Kept) -> dict[str, str | bool | None]:
    """What a record takes over of a shape, or of another record, beside its size, which it has already."""
    return {
        "image_digest": made.image_digest,
        "acceleration": made.acceleration,
        "far_memory": made.far_memory,
    }


def same_size(one: Sized, other: Sized) -> bool:
    """Whether both have as many CPUs and as much memory."""
    return (one.cpus, one.memory_bytes) == (other.cpus, other.memory_bytes)


def made_of(made: Made, image_digest: str) -> bool:
    """Whether a machine's root disk is an overlay on this image: on another one its file system would be torn."""
    return made.image_digest == image_digest


def serves(made: Made, image_digest: str, size: Sized) -> bool:
    """Whether a machine that was made does for one of this image and size. How it runs, its host has chosen."""
    return made_of(made, image_digest) and same_size(made, size)
