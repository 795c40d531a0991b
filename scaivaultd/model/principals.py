"""Who asks: principals in their normal form. Apart from `access`, so that what the store keeps can name them."""

from __future__ import annotations

import re
from typing import Literal

import msgspec

PrincipalKind = Literal["token", "nats", "nkey", "mtls", "unix", "system"]

_PRINCIPAL_ID = {
    "token": r"[0-9A-Za-z]{8}",
    "nats": r"[!-)+-.0-~]{1,128}/[!-)+-.0-~]{1,128}",
    "nkey": r"U[A-Z2-7]{55}",
    "mtls": r"[!-)+-~]{1,1000}",
    "unix": r"0|[1-9][0-9]{0,9}",
    "system": "",
}
# Never of the form of a token's id, which begins with a capital letter: nobody can name a token after another one.
_TOKEN_NAME = re.compile(r"[a-z][a-z0-9._-]{0,62}")


class Principal(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who asks, as a gateway has found out; `str` gives its normal form: `token:Ab3dEf9h`, `unix:33`, `system`.

    `name` is a token's name: policies speak of tokens by it. `tenant` confines to one tenant; None leaves that to the
    policies. `policies` apply beside those that name the principal; `scopes` are the most it may do, empty for no such
    bound.
    """

    kind: PrincipalKind
    id: str = ""
    name: str | None = None
    tenant: str | None = None
    policies: tuple[str, ...] = ()
    scopes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what is no normal form: it would be compared with patterns.

        Raises:
            ValueError: the id has not the form of its kind.
        """
        # A path such as spiffe://x/web/../admin begins like one below /web/ and is another one.
        has_dot_segment = self.kind == "mtls" and re.search(r"(?:^|/)(?:\.|%2e){1,2}(?:/|$)", self.id, re.IGNORECASE)
        if has_dot_segment or not re.fullmatch(_PRINCIPAL_ID[self.kind], self.id):
            raise ValueError(f"{self.id[:80]!r} is no id of a principal of kind {self.kind}")
        if self.name is not None and (self.kind != "token" or not _TOKEN_NAME.fullmatch(self.name)):
            raise ValueError("only tokens have a name: lower case letters, digits, '.', '_', '-', a letter first")

    def __str__(self) -> str:
        return f"{self.kind}:{self.id}" if self.id else self.kind


def principal_from(text: str) -> Principal:
    """Read a normal form.

    Raises:
        ValueError: it is none.
    """
    kind, _, name = text.partition(":")
    try:
        principal = msgspec.convert({"kind": kind, "id": name}, Principal)
    except msgspec.ValidationError:
        principal = None
    if principal is None or str(principal) != text:
        raise ValueError(f"{text[:80]!r} is no principal: token:ID, nats:ACCOUNT/USER, nkey:U..., mtls:..., unix:UID")
    return principal


SYSTEM = Principal(kind="system")
"""The daemon itself: whoever asked before there were principals, and what nobody asked for."""
