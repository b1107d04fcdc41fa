"""Servers that guests ask for by several names: HTTP, HTTPS by an authority of their own, both with git, and lines."""

from __future__ import annotations

import shutil
import socketserver
import ssl
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from examples.hello.serve import Handler, Server, Start, git_backend

# One of loopback that nothing else listens at.
ADDRESS = "127.0.4.1"
HELLO = b"hello from the origin\n"
GREETING = b"greetings\n"


@dataclass(frozen=True)
class Origins:
    """Ports of the servers, all at ADDRESS, and the authority that has signed for their names."""

    http: int
    https: int
    line: int
    authority: bytes


@contextmanager
def origins(directory: Path, names: Sequence[str], repository: Path) -> Iterator[Origins]:
    """Serve while the context lasts. HTTP and HTTPS serve the repository as well, below its name."""
    authority, chain = _certificates(directory, names)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain)
    backend = git_backend(repository)

    def application(request: dict[str, Any], start: Start) -> Iterable[bytes]:
        if request["PATH_INFO"].startswith(f"/{repository.name}/"):
            return backend(request, start)
        start("200 OK", [("Content-Length", str(len(HELLO)))])
        return [HELLO]

    with ExitStack() as stack:
        ports = []
        for secure in (False, True):
            server = Server((ADDRESS, 0), Handler)
            server.set_app(application)
            if secure:
                server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
            ports.append(stack.enter_context(_running(server)))
        line = stack.enter_context(_running(_Lines((ADDRESS, 0), _Echo)))
        yield Origins(*ports, line, authority)


class _Lines(socketserver.ThreadingTCPServer):
    daemon_threads = True


class _Echo(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        self.wfile.write(GREETING)
        shutil.copyfileobj(self.rfile, self.wfile)


@contextmanager
def _running(server: socketserver.TCPServer) -> Iterator[int]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _certificates(directory: Path, names: Sequence[str]) -> tuple[bytes, Path]:
    """The authority in PEM, and a file of key and certificate that it has signed for the names."""
    now = datetime.now(UTC)

    def made(
        subject: str, issuer: str, key: ec.EllipticCurvePrivateKey, by: ec.EllipticCurvePrivateKey, *, ca: bool
    ) -> x509.Certificate:
        def called(text: str) -> x509.Name:
            return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

        builder = x509.CertificateBuilder(
            called(issuer), called(subject), key.public_key(), x509.random_serial_number()
        )
        builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
        builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        if not ca:
            alternatives = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
            builder = builder.add_extension(alternatives, critical=False)
        return builder.sign(by, hashes.SHA256())

    root, leaf = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    authority = made("Authority of the origins", "Authority of the origins", root, root, ca=True)
    certificate = made(names[0], "Authority of the origins", leaf, root, ca=False)
    private = leaf.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    chain = directory / "origin.pem"
    chain.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    return authority.public_bytes(serialization.Encoding.PEM), chain
