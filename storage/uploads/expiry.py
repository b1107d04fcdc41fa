"""Artifacts whose content the bucket's own rule has deleted, while a younger object still names them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from storage.bucket import Bucket
from storage.layout import Place

# By how much clocks and the moment of a rule may differ.
_SLACK = timedelta(days=1)

Named = TypeVar("Named")


def still_there(
    bucket: Bucket,
    place: Place,
    artifacts: Sequence[Named],
    key: Callable[[Named], str],
    created_at: Callable[[Named], datetime],
) -> list[Named]:
    """Those of a run's artifacts whose content is there. The bucket is only asked when some are as old as its rule.

    Raises BucketUnavailable.
    """
    if not bucket.retention_days:
        return list(artifacts)
    oldest = datetime.now(UTC) - timedelta(days=bucket.retention_days) + _SLACK
    if all(created_at(each) > oldest for each in artifacts):
        return list(artifacts)
    there = {found.key for found in bucket.list(place.artifacts_prefix)}
    return [each for each in artifacts if key(each) in there]
