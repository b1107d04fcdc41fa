"""The rules by which the bucket itself deletes what is old: what runs have left, and what clients never told of."""

from __future__ import annotations

import structlog
from minio import Minio
from minio.commonconfig import ENABLED, Filter
from minio.error import S3Error
from minio.lifecycleconfig import AbortIncompleteMultipartUpload, Expiration, LifecycleConfig, Rule

from storage.layout import STAGED, TASKS, incoming_prefix

#: What clients upload by a form and do not tell of is deleted after this.
INCOMING_DAYS = 1

_OWN = "taskyard-"
# The name that the first versions gave to the one rule that they made.
_ABANDONED = "abort-abandoned-uploads"

log = structlog.get_logger("bucket")


def keep_rules(client: Minio, bucket: str, retention_days: int) -> None:
    """Give the bucket the rules in force, beside those that its operator gave it. Nothing is sent when it has them.

    A service that has no such rules, or does not let these keys set them, keeps everything; the log says so.
    Raises what the client raises when the service cannot be reached.
    """
    wanted = _rules(retention_days)
    try:
        found = client.get_bucket_lifecycle(bucket_name=bucket)
        rules = list(found.rules) if found else []
        own = [rule for rule in rules if _is_own(rule)]
        if {_facts(rule) for rule in own} == {_facts(rule) for rule in wanted}:
            return
        foreign = [rule for rule in rules if not _is_own(rule)]
        client.set_bucket_lifecycle(bucket_name=bucket, config=LifecycleConfig([*foreign, *wanted]))
    except S3Error as error:
        log.warning("the bucket did not take its rules, and keeps what is old", bucket=bucket, code=error.code)


def _rules(retention_days: int) -> list[Rule]:
    # An upload in parts that died with its process would stay for ever, unseen.
    rules = [
        Rule(
            status=ENABLED,
            rule_filter=Filter(prefix=""),
            rule_id=_ABANDONED,
            abort_incomplete_multipart_upload=AbortIncompleteMultipartUpload(days_after_initiation=1),
        ),
        _expiring("incoming", incoming_prefix(), INCOMING_DAYS),
    ]
    if retention_days:
        rules += [_expiring(kind.directory, f"{kind.directory}/", retention_days) for kind in (TASKS, STAGED)]
    return rules


def _expiring(name: str, prefix: str, days: int) -> Rule:
    return Rule(
        status=ENABLED, rule_filter=Filter(prefix=prefix), rule_id=f"{_OWN}{name}", expiration=Expiration(days=days)
    )


def _is_own(rule: Rule) -> bool:
    return (rule.rule_id or "") == _ABANDONED or (rule.rule_id or "").startswith(_OWN)


def _facts(rule: Rule) -> tuple[object, ...]:
    expiration, abandoned = rule.expiration, rule.abort_incomplete_multipart_upload
    return (
        rule.rule_id,
        rule.status,
        (rule.rule_filter.prefix if rule.rule_filter else "") or "",
        expiration.days if expiration else None,
        abandoned.days_after_initiation if abandoned else None,
    )
