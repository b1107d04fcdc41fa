"""The shape of a machine: what its guest is made of, how a record keeps it, and when one machine serves for another.

In a record it is fields beside others, as in records of every version: CPUs and memory from the reservation on, the
image's digest and the acceleration from when the machine is begun.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from machines.images.store import Image


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


@dataclass(frozen=True)
class Shape:
    """All that a guest is made of: guests of one shape differ in nothing until they have an identity."""

    image: Image
    cpus: int
    memory_bytes: int
    acceleration: str

    @property
    def image_digest(self) -> str:
        return self.image.digest


def shape_of(size: Sized, image: Image, acceleration: str) -> Shape:
    """The shape of a machine of this size."""
    return Shape(image, size.cpus, size.memory_bytes, acceleration)


def recorded(made: Made) -> dict[str, str | None]:
    """What a record takes over of a shape, or of another record, beside its size, which it has already."""
    return {"image_digest": made.image_digest, "acceleration": made.acceleration}


def same_size(one: Sized, other: Sized) -> bool:
    """Whether both have as many CPUs and as much memory."""
    return (one.cpus, one.memory_bytes) == (other.cpus, other.memory_bytes)


def made_of(made: Made, image_digest: str) -> bool:
    """Whether a machine's root disk is an overlay on this image: on another one its file system would be torn."""
    return made.image_digest == image_digest


def serves(made: Made, image_digest: str, size: Sized) -> bool:
    """Whether a machine that was made does for one of this image and size. How it runs, its host has chosen."""
    return made_of(made, image_digest) and same_size(made, size)
