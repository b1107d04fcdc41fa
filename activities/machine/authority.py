"""The authority of one machine: signs the certificates with which the egress proxy ends TLS for injected hosts.

Its certificate is trusted by this machine's guest alone, and is good for the injected hosts alone. The key lies among
the machine's own files, for the worker's user, and goes with them.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from foundation.durable import write_once

AUTHORITY = "authority.pem"
# A guest's clock is its host's; what a run does with it by itself is not provided for.
_MARGIN = timedelta(days=2)
# Longer than any machine lives, kept and paused ones too: it goes with the machine.
_AUTHORITY_TIME = timedelta(days=3650)
LEAF_TIME = timedelta(days=7)
_SERIAL_NAME = "Taskyard egress"


class Authority:
    """Signs for hosts that ``name constraints`` of its certificate permit. ``pem`` is what the guest trusts."""

    def __init__(self, text: bytes) -> None:
        """Raises ValueError for what is no key with its certificate."""
        key = serialization.load_pem_private_key(text, None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ValueError("the key of a machine's authority is none of an elliptic curve")  # noqa: TRY004 -- a file
        self._key = key
        self._certificate = x509.load_pem_x509_certificate(text)
        self.pem = self._certificate.public_bytes(serialization.Encoding.PEM).decode()

    def leaf(self, host: str, now: datetime | None = None) -> bytes:
        """Key, certificate of the host and the authority's own, in PEM; good for ``LEAF_TIME`` from now."""
        now = now or datetime.now(UTC)
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            _builder(_SERIAL_NAME, self._certificate.subject, key, now, LEAF_TIME)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return _private(key) + certificate.public_bytes(serialization.Encoding.PEM) + self.pem.encode()


def ensure_authority(directory: Path, domains: Iterable[str]) -> Authority:
    """The authority of the machine that has the directory, made for the domains and all below them by the first call.

    Raises OSError.
    """
    path = directory / AUTHORITY
    try:
        return Authority(path.read_bytes())
    except FileNotFoundError:
        pass
    except ValueError:
        # A crash of the host may have left an empty file.
        path.unlink(missing_ok=True)
    write_once(path, _new(sorted(set(domains))))
    return Authority(path.read_bytes())


def kept_authority(directory: Path) -> Authority | None:
    """The authority that the machine has; None when it has none that can be read."""
    try:
        return Authority((directory / AUTHORITY).read_bytes())
    except (OSError, ValueError):
        return None


def _new(domains: list[str]) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{_SERIAL_NAME} authority")])
    everything = [ipaddress.ip_network(text) for text in ("0.0.0.0/0", "::/0")]
    permitted = x509.NameConstraints([x509.DNSName(each) for each in domains], [x509.IPAddress(n) for n in everything])
    certificate = (
        _builder(f"{_SERIAL_NAME} authority", subject, key, datetime.now(UTC), _AUTHORITY_TIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(permitted, critical=True)
        .sign(key, hashes.SHA256())
    )
    return _private(key) + certificate.public_bytes(serialization.Encoding.PEM)


def _builder(
    name: str, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime, time: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _MARGIN)
        .not_valid_after(now + time)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
