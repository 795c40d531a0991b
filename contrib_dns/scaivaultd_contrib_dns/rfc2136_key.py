"""TSIG keys (RFC 8945): from a secret, or from the text that `tsig-keygen` prints and BIND includes."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator

import dns.exception
import dns.name
import dns.tsig

from scaivaultd.plugin import PermanentError

ALGORITHMS = {
    "hmac-md5": dns.tsig.HMAC_MD5,
    "hmac-sha1": dns.tsig.HMAC_SHA1,
    "hmac-sha224": dns.tsig.HMAC_SHA224,
    "hmac-sha256": dns.tsig.HMAC_SHA256,
    "hmac-sha384": dns.tsig.HMAC_SHA384,
    "hmac-sha512": dns.tsig.HMAC_SHA512,
}
DEFAULT_ALGORITHM = "hmac-sha256"

# A quoted text comes first: a secret may hold //, which begins a comment elsewhere.
_TOKEN = re.compile(
    r'"(?P<quoted>[^"]*)"|(?P<comment>//[^\n]*|#[^\n]*|/\*.*?\*/)|(?P<mark>[{};])|(?P<word>[^\s{};"]+)', re.S
)


class TsigKey(dns.tsig.Key):
    """A key that prints without its secret."""

    def __repr__(self) -> str:
        return f"TsigKey({self.title})"

    @property
    def title(self) -> str:
        """Name and algorithm, as people have to compare them with the server's configuration."""
        named = next((word for word, algorithm in ALGORITHMS.items() if algorithm == self.algorithm), self.algorithm)
        return f"{self.name.to_text(omit_final_dot=True)} ({named})"


def make_key(name: str, algorithm: str, secret: str, source: str) -> TsigKey:
    """A key from its parts; `source` is the reference of the secret, for error texts.

    Raises:
        PermanentError: a part is not what it should be; the text never shows the secret.
    """
    known = ALGORITHMS.get(algorithm.lower().removesuffix(".").removesuffix(".sig-alg.reg.int"))
    if known is None:
        # Not shown: with parts mixed up this could be the secret.
        raise PermanentError(f"the TSIG algorithm is none of {', '.join(ALGORITHMS)}")
    try:
        raw = base64.b64decode("".join(secret.split()), validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if not raw:
        raise PermanentError(
            f"the TSIG secret at {source} is not base64; a whole `key ... {{ ... }};` text belongs to "
            "`tsig_keyfile_path`"
        )
    try:
        return TsigKey(dns.name.from_text(name), raw, known)
    except (dns.exception.DNSException, UnicodeError):
        raise PermanentError(f"the TSIG key name at {source} is no domain name") from None


def read_keyfile(text: str, source: str) -> TsigKey:
    """The one key in a text such as `key "name" { algorithm hmac-sha256; secret "..."; };`, comments and all.

    Raises:
        PermanentError: there is not exactly one key in it, or a part of it is missing or wrong.
    """
    keys = list(_key_statements(list(_tokens(text))))
    if len(keys) != 1:
        raise PermanentError(
            f'the text at {source} holds {len(keys)} statements of the form key "NAME" {{ algorithm ...; '
            f'secret "..."; }}; exactly one is needed'
        )
    name, parts = keys[0]
    for needed in ("algorithm", "secret"):
        if needed not in parts:
            raise PermanentError(f"the key at {source} has no `{needed}` statement")
    return make_key(name, parts["algorithm"], parts["secret"], source)


def _tokens(text: str) -> Iterator[str]:
    for match in _TOKEN.finditer(text):
        if match["comment"] is None:
            yield match["quoted"] if match["quoted"] is not None else match[0]


def _key_statements(tokens: list[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Name and sub-statements of each `key NAME {`; `key NAME;` is a mention of one, and no statement."""
    for place, word in enumerate(tokens[:-2]):
        if word == "key" and tokens[place + 2] == "{":
            body = tokens[place + 3 :]
            body = body[: body.index("}")] if "}" in body else body
            yield tokens[place + 1], {name.lower(): body[at + 1] for at, name in enumerate(body[:-1]) if at % 3 == 0}
