"""Tokens for single runs: good for what they were made for, while they last, under the keys in force."""

from __future__ import annotations

import time
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from api.http.tokens import TokenKeys, looks_like_one
from foundation.errors import HostNotReady, Unauthorized
from foundation.settings import Settings

CLAIMS = {"run_id": "r", "task_id": "t"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One home, whose key is made once: that takes a moment."""
    return tmp_path_factory.mktemp("home")


def keys(home: Path, *paths: Path) -> TokenKeys:
    return TokenKeys(Settings(home=home, token_keys=list(paths)))


def write(path: Path, key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> Path:
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(key.private_bytes(*form))
    return path


def test_any_server_of_the_home_checks_what_one_has_signed(home: Path) -> None:
    token = keys(home).sign("connection", CLAIMS, 60)
    assert looks_like_one(token)
    claims = keys(home).check("connection", token)
    assert CLAIMS.items() <= claims.items()
    assert abs(claims["exp"] - time.time() - 60) < 30
    (public,) = keys(home).public_keys()
    assert (public["kid"], public["kty"], public["alg"]) == (jwt.get_unverified_header(token)["kid"], "RSA", "RS256")
    assert "d" not in public
    assert (home / "tokens.pem").stat().st_mode & 0o077 == 0
    # As anybody checks it who has the public key alone.
    assert jwt.decode(token, jwt.PyJWK(public), algorithms=["RS256"], audience="connection")["run_id"] == "r"


def test_a_key_that_signed_before_is_accepted_until_it_is_taken_away(home: Path, tmp_path: Path) -> None:
    old = keys(home).sign("connection", CLAIMS, 60)
    new_path = write(tmp_path / "new.pem", rsa.generate_private_key(public_exponent=65537, key_size=2048))
    both = keys(home, new_path, home / "tokens.pem")
    assert both.check("connection", old)["run_id"] == "r"
    new = both.sign("connection", CLAIMS, 60)
    assert jwt.get_unverified_header(new)["kid"] == both.public_keys()[0]["kid"]
    alone = keys(home, new_path)
    assert alone.check("connection", new)
    with pytest.raises(Unauthorized):
        alone.check("connection", old)


def test_what_is_no_token_of_ours_is_refused(home: Path) -> None:
    ours = keys(home)
    token = ours.sign("connection", CLAIMS, 60)
    kid = ours.public_keys()[0]["kid"]
    head, body, mark = token.split(".")
    public = jwt.PyJWK(ours.public_keys()[0]).key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    whole = {**CLAIMS, "aud": "connection", "exp": int(time.time()) + 60}
    mac = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256)
    confused_head = jwt.utils.base64url_encode(b'{"alg":"HS256","kid":"%s"}' % kid.encode()).decode()
    confused = f"{confused_head}.{body}"
    confused_mark = jwt.utils.base64url_encode(mac.sign(confused.encode(), public)).decode()
    bad = {
        "for something else": ours.sign("ingest", CLAIMS, 60),
        "ended": ours.sign("connection", CLAIMS, -60),
        "another's": jwt.encode(whole, other, algorithm="RS256", headers={"kid": kid}),
        "unsigned": jwt.encode(whole, None, algorithm="none", headers={"kid": kid}),
        "signed with the public key": f"{confused}.{confused_mark}",
        "without a key's name": jwt.encode(whole, other, algorithm="RS256"),
        "changed": f"{head}.{body[:-2]}AA.{mark}",
        "cut": token[:-3],
        "nothing": "..",
        "deep": f"{jwt.utils.base64url_encode(b'[' * 4000).decode()}.{body}.{mark}",
        "long": f"{head}.{'A' * 100_000}.{mark}",
        "no text": "a.\ud800.b",
    }
    for what, each in bad.items():
        with pytest.raises(Unauthorized):
            pytest.fail(f"{what}: {ours.check('connection', each)}")


def test_what_is_no_key_is_told(home: Path, tmp_path: Path) -> None:
    (tmp_path / "text.pem").write_text("nothing")
    weak = write(tmp_path / "weak.pem", rsa.generate_private_key(public_exponent=65537, key_size=1024))
    curve = write(tmp_path / "curve.pem", ec.generate_private_key(ec.SECP256R1()))
    for path in (tmp_path / "absent.pem", tmp_path / "text.pem", weak, curve):
        with pytest.raises(HostNotReady, match=path.name):
            keys(home, path).sign("connection", CLAIMS, 60)
