"""Tokens that let a client do one thing to one run for a while: JSON Web Tokens, signed by a key of this installation.

Any number of servers check what one of them has signed, as long as they have the same keys. The first key signs; the
others are those that signed before it, whose tokens are accepted until they end.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey, generate_private_key
from jwt.algorithms import RSAAlgorithm

from foundation.durable import write_once
from foundation.errors import HostNotReady, Unauthorized
from foundation.settings import Settings

# By how much the clocks of the servers may differ.
CLOCKS_APART_SECONDS = 30

_ALGORITHM = "RS256"
_KEY_BITS = 2048
_OWN_KEY = "tokens.pem"
_KID_DIGITS = 16
_TOKEN_CHARS = 8192


@dataclass(frozen=True)
class _Key:
    id: str
    private: RSAPrivateKey

    @property
    def public(self) -> RSAPublicKey:
        return self.private.public_key()


class TokenKeys:
    """Signs tokens and checks them. The keys are read, or one is made, when they are first needed.

    Every method raises HostNotReady when that cannot be. Making a key takes a moment of a processor.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def sign(self, audience: str, claims: Mapping[str, Any], seconds: int) -> str:
        """A token with these claims, which ends after so many seconds. ``audience`` says what it is good for."""
        key = self._keys[0]
        body = {**claims, "aud": audience, "exp": int(time.time()) + seconds}
        return jwt.encode(body, key.private, algorithm=_ALGORITHM, headers={"kid": key.id})

    def check(self, audience: str, token: str) -> dict[str, Any]:
        """The claims of a token that one of the keys has signed for this audience. Raises Unauthorized."""
        claims = self._claims(audience, token) if len(token) <= _TOKEN_CHARS else None
        if claims is None:
            raise Unauthorized("The token is none for this, or has ended; ask for another")
        return claims

    def public_keys(self) -> list[dict[str, Any]]:
        """The public halves as a JSON Web Key Set has them; the first is the one that signs."""
        return [
            {**RSAAlgorithm.to_jwk(key.public, as_dict=True), "kid": key.id, "use": "sig", "alg": _ALGORITHM}
            for key in self._keys
        ]

    def _claims(self, audience: str, token: str) -> dict[str, Any] | None:
        try:
            kid = jwt.get_unverified_header(token).get("kid")
            key = next((key for key in self._keys if key.id == kid), None)
            if key is None:
                return None
            claims: dict[str, Any] = jwt.decode(
                token,
                key.public,
                algorithms=[_ALGORITHM],
                audience=audience,
                leeway=CLOCKS_APART_SECONDS,
                options={"require": ["exp", "aud"]},
            )
        except (jwt.InvalidTokenError, ValueError, RecursionError):
            return None
        return claims

    @cached_property
    def _keys(self) -> Sequence[_Key]:
        paths = self._settings.token_keys or [_made(self._settings)]
        return [_read(path) for path in paths]


def looks_like_one(text: str) -> bool:
    """Whether a bearer's text is written as such a token is, and so can be no key of a client."""
    return text.count(".") == 2  # noqa: PLR2004 -- head, claims, signature


def _made(settings: Settings) -> Path:
    """The key of this home, made at first use."""
    path = settings.home / _OWN_KEY
    settings.make_home()
    try:
        if path.exists():
            return path
        key = generate_private_key(public_exponent=65537, key_size=_KEY_BITS)
        form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        # Of two processes that start at once, both read the same key.
        write_once(path, key.private_bytes(*form))
    except OSError as error:
        raise HostNotReady(f"The key {path} cannot be made ({error.strerror})") from error
    return path


def _read(path: Path) -> _Key:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise HostNotReady(f"The key {path} cannot be read ({error.strerror}); see TASKYARD_TOKEN_KEYS") from error
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, RSAPrivateKey) or key.key_size < _KEY_BITS:
        raise HostNotReady(
            f"The file {path} holds no RSA key of at least {_KEY_BITS} bits without a password; "
            "'openssl genrsa -out FILE 2048' makes one"
        )
    der = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return _Key(hashlib.sha256(der).hexdigest()[:_KID_DIGITS], key)
