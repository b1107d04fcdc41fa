"""The certificate of a host's service: self-made at the first start unless files are set. Servers trust just it."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from foundation.durable import write_once
from foundation.errors import HostNotReady
from foundation.settings import Settings

_FILE = "host.pem"
_NAME = "Taskyard host"
_TIME = timedelta(days=3650)
# By how much the clocks of hosts may differ.
_MARGIN = timedelta(days=2)


@dataclass(frozen=True)
class Certificate:
    """Where certificate and key are, and the certificate alone, in PEM, as it is told to those who are to trust it."""

    chain: Path
    key: Path
    pem: str


def host_certificate(settings: Settings) -> Certificate:
    """The one set, else this home's own. Raises HostNotReady when it cannot be read, or its key is another's."""
    chain, key = settings.host_certificate, settings.host_certificate_key
    if (chain is None) != (key is None):
        raise HostNotReady("Set TASKYARD_HOST_CERTIFICATE and TASKYARD_HOST_CERTIFICATE_KEY, or neither")
    try:
        if chain is None or key is None:
            chain = key = _own(settings)
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(chain, key, password=_no_password)
        certificate = x509.load_pem_x509_certificate(chain.read_bytes())
    except (OSError, ValueError) as error:
        raise HostNotReady(f"The certificate of the host's service, {chain}, is of no use: {error}") from error
    return Certificate(chain, key, certificate.public_bytes(serialization.Encoding.PEM).decode())


def _no_password() -> bytes:
    raise ValueError("its key has a password")


def _own(settings: Settings) -> Path:
    path = settings.home / _FILE
    settings.make_home()
    if not path.exists():
        write_once(path, _made())
    return path


def _made() -> bytes:
    """A key with its certificate. Whoever is to trust it is given it, and asks for no name in it."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _NAME)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _MARGIN)
        .not_valid_after(now + _TIME)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return private + certificate.public_bytes(serialization.Encoding.PEM)
