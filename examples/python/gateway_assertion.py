"""Who is calling, as the gateway says: checks X-Auth-Assertion.

Needs PyJWT 2.6 or later with cryptography (Debian: python3-jwt, python3-cryptography).

    gateway = Gateway(audience="orders", keys_url="https://api.example.com/.well-known/jwks.json")
    caller = gateway.identify(environ)          # in a WSGI application
    caller = gateway.verify(token, method, path)
"""

import json
import threading
import time
import urllib.request

import jwt
from jwt.algorithms import ECAlgorithm, OKPAlgorithm

ALGORITHMS = {"EdDSA": OKPAlgorithm, "ES256": ECAlgorithm}
LEEWAY = 5  # seconds that the gateway's clock may be off
MOST = 16384  # bytes of an assertion


class Refused(Exception):
    """The request did not come through the gateway, or what it says is not true. Answer 401."""


class Unavailable(Exception):
    """The gateway's keys can't be had, so nobody can tell. Answer 503."""


class Gateway:
    """Checks assertions. Threads may share one."""

    def __init__(self, audience, keys_url=None, key_set=None, issuer=None, now=time.time):
        if not audience or (keys_url is None) == (key_set is None):
            raise ValueError("want an audience, and keys_url or key_set")
        self.audience, self.keys_url, self.issuer, self.now = audience, keys_url, issuer, now
        self.lock = threading.Lock()
        self.keys, self.fetched_at, self.tried_at = {}, 0.0, 0.0
        if key_set is not None:
            self.keys = self._read(key_set)

    def identify(self, environ):
        """Returns the claims of a WSGI request's assertion."""
        token = environ.get("HTTP_X_AUTH_ASSERTION", "")
        if not token:
            raise Refused("no assertion")
        if "," in token:  # how WSGI joins repeated headers
            raise Refused("more than one assertion")
        target = environ.get("RAW_URI") or environ.get("REQUEST_URI")  # of gunicorn, uwsgi: as it was sent
        if target is None:
            raise Unavailable("this server does not tell the path as it was sent")
        return self.verify(token, environ["REQUEST_METHOD"], target.split("?", 1)[0])

    def verify(self, token, method, path):
        """Returns the claims of an assertion for a method and a path, as it was sent."""
        if len(token) > MOST:
            raise Refused("not an assertion")
        try:
            header = jwt.get_unverified_header(token)
        except (jwt.InvalidTokenError, ValueError, RecursionError):
            raise Refused("not an assertion") from None
        if header.get("typ") != "caddy-auth-assertion+jwt" or "crit" in header:
            raise Refused("a token for another purpose")  # is no assertion
        algorithm, key = self._key(header.get("kid"))
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=[algorithm],  # the key's own, whatever the token says
                audience=self.audience,
                issuer=self.issuer,
                options={"require": ["exp", "aud", "sub"], "verify_exp": False, "verify_nbf": False, "verify_iat": False},
            )
        except (jwt.InvalidTokenError, ValueError, RecursionError) as error:
            raise Refused(str(error)) from None
        self._check(claims, method, path)
        return claims

    def _check(self, claims, method, path):
        now = self.now()
        exp, nbf = claims["exp"], claims.get("nbf", 0)
        if not isinstance(exp, int) or not isinstance(nbf, int):
            raise Refused("exp or nbf is no number")
        if now >= exp + LEEWAY or nbf > now + LEEWAY:
            raise Refused("expired, or not valid yet")
        if claims.get("htm") != method or claims.get("path") != path:
            raise Refused("for another method or path")
        if not isinstance(claims["sub"], str) or not claims["sub"]:
            raise Refused("no subject")

    def _key(self, kid):
        if not isinstance(kid, str):
            raise Refused("an unknown key")
        now = self.now()
        with self.lock:
            keys = self.keys
            due = kid not in keys or now - self.fetched_at > 300
            fetch = self.keys_url and due and now - self.tried_at > (30 if keys else 1)
            if fetch:
                self.tried_at = now  # the others go on with what there is
        if fetch:
            keys = self._fetch() or keys
        if not keys:
            raise Unavailable("the gateway's keys can't be had")
        if kid not in keys:
            raise Refused("an unknown key")
        return keys[kid]

    def _fetch(self):
        try:
            with urllib.request.urlopen(self.keys_url, timeout=3) as answer:
                keys = self._read(json.loads(answer.read(1 << 20)))
        except Exception:  # whatever the other side does: what there is goes on being used
            return None
        if keys:
            with self.lock:
                self.keys, self.fetched_at = keys, self.now()
        return keys

    @staticmethod
    def _read(key_set):
        keys = {}
        for jwk in key_set["keys"]:
            algorithm = jwk.get("alg")
            if algorithm in ALGORITHMS and jwk.get("kid"):
                keys[jwk["kid"]] = (algorithm, ALGORITHMS[algorithm].from_jwk(json.dumps(jwk)))
        return keys
