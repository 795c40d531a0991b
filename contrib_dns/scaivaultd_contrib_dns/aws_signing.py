"""Signature version 4, as far as Route 53 and STS need it: one signed request, its body in memory."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from datetime import datetime
from urllib.parse import quote, urlsplit

import msgspec

from scaivaultd.plugin import Secret
from scaivaultd.plugin.http import HttpRequest

ALGORITHM = "AWS4-HMAC-SHA256"
DEFAULT_PORTS = {"https": 443, "http": 80}


class AwsKeys(msgspec.Struct, frozen=True, kw_only=True):
    """What signs a request; `expires` is None for keys that last until somebody withdraws them."""

    access_key_id: str
    secret_access_key: Secret
    session_token: Secret | None = None
    expires: datetime | None = None


class Scope(msgspec.Struct, frozen=True, kw_only=True):
    """What a signature is good for."""

    service: str
    region: str


def signed_headers(request: HttpRequest, keys: AwsKeys, scope: Scope, now: datetime) -> Mapping[str, str]:
    """The headers to add to `request`; its own content type is signed with them.

    `now` must be within five minutes of the service's clock.
    """
    moment = now.strftime("%Y%m%dT%H%M%SZ")
    added = {"Host": _host(request.url), "X-Amz-Date": moment}
    if keys.session_token is not None:
        added["X-Amz-Security-Token"] = keys.session_token.reveal()
    signed = {name.lower(): value.strip() for name, value in added.items()}
    signed |= {name.lower(): value for name, value in request.headers.items() if name.lower() == "content-type"}
    names = ";".join(sorted(signed))
    credential_scope = f"{moment[:8]}/{scope.region}/{scope.service}/aws4_request"
    canonical = _canonical(request, signed, names)
    to_sign = "\n".join((ALGORITHM, moment, credential_scope, hashlib.sha256(canonical.encode()).hexdigest()))
    signature = hmac.new(_signing_key(keys, moment[:8], scope), to_sign.encode(), hashlib.sha256).hexdigest()
    added["Authorization"] = (
        f"{ALGORITHM} Credential={keys.access_key_id}/{credential_scope}, SignedHeaders={names}, Signature={signature}"
    )
    return added


def _host(url: str) -> str:
    # Sent explicitly: what is signed and what the HTTP library would make up must not differ.
    parts = urlsplit(url)
    host = parts.hostname or ""
    host = f"[{host}]" if ":" in host else host
    if parts.port is None or parts.port == DEFAULT_PORTS.get(parts.scheme):
        return host
    return f"{host}:{parts.port}"


def _canonical(request: HttpRequest, signed: Mapping[str, str], names: str) -> str:
    parts = urlsplit(request.url)
    # The path is encoded once more: every service but S3 signs it so.
    path = quote(parts.path or "/", safe="/~")
    query = "&".join(sorted(part if "=" in part else f"{part}=" for part in parts.query.split("&") if part))
    headers = "".join(f"{name}:{signed[name]}\n" for name in sorted(signed))
    return "\n".join((request.method, path, query, headers, names, hashlib.sha256(request.body).hexdigest()))


def _signing_key(keys: AwsKeys, day: str, scope: Scope) -> bytes:
    key = f"AWS4{keys.secret_access_key.reveal()}".encode()
    for part in (day, scope.region, scope.service, "aws4_request"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return key
