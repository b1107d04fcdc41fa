"""The guest's end of TLS for injected hosts: a certificate of its machine's authority for each, kept in memory."""

from __future__ import annotations

import os
import ssl
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime

from activities.machine.authority import LEAF_TIME, Authority

# Names that a rule '*.suffix' covers are a guest's to make up.
_KEPT_MOST = 64
# The rest of its time that a certificate has at least when it is shown: more than clocks differ.
_LEFT = LEAF_TIME / 2


class Certificates:
    """Certificates for the hosts of one machine."""

    def __init__(self, authority: Authority) -> None:
        self._authority = authority
        self._leaves: OrderedDict[str, tuple[datetime, bytes]] = OrderedDict()

    def context(self, host: str, other: Callable[[str | None], None]) -> ssl.SSLContext:
        """What one connection of the guest is answered with. A client that names another host, or none, is refused.

        ``other`` is told what it has named.
        """

        def named(_: ssl.SSLObject | ssl.SSLSocket, name: str | None, __: ssl.SSLContext) -> int | None:
            if name is not None and name.lower().removesuffix(".") == host:
                return None
            other(name)
            return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        context.sni_callback = named
        # It takes a path: a file in memory has one, and never reaches a disk.
        descriptor = os.memfd_create("certificate", os.MFD_CLOEXEC)
        try:
            with os.fdopen(os.dup(descriptor), "wb") as file:
                file.write(self._leaf(host))
            context.load_cert_chain(f"/proc/self/fd/{descriptor}")
        finally:
            os.close(descriptor)
        return context

    def _leaf(self, host: str) -> bytes:
        now = datetime.now(UTC)
        made, leaf = self._leaves.pop(host, (None, b""))
        # A clock that was set back makes a certificate of the future of it.
        if made is None or not made <= now < made + LEAF_TIME - _LEFT:
            made, leaf = now, self._authority.leaf(host, now)
        self._leaves[host] = made, leaf
        if len(self._leaves) > _KEPT_MOST:
            self._leaves.popitem(last=False)
        return leaf
