"""Answers about certificates and orders, for the tests of the verbs that show them."""

from __future__ import annotations

from typing import Any

ACCOUNT = "acme_01k2v7m0e8zq3c9x5w1r4t6y8b"
CERT = "cert_01k2v7m0e8zq3c9x5w1r4t6y8b"
OTHER_CERT = "cert_01k2v7m0e8zq3c9x5w1r4t6y8c"
ORDER = "acme_order_01k2v7m0e8zq3c9x5w1r4t6y8b"
OTHER_ORDER = "acme_order_01k2v7m0e8zq3c9x5w1r4t6y8c"
BULK = "bulk_01k2v7m0e8zq3c9x5w1r4t6y8b"


def certificate(**changes: Any) -> dict[str, Any]:
    """One that is valid for decades."""
    return {
        "id": CERT,
        "order_id": ORDER,
        "account_id": ACCOUNT,
        "status": "valid",
        "domains": ["www.example.org", "example.org"],
        "version": 3,
        "serial_number": "01:ab",
        "fingerprint_sha256": "ab" * 32,
        "issuer": "R10",
        "key_type": "ec-p256",
        "challenge_type": "http-01",
        "auto_renew": True,
        "not_before": "2026-11-01T00:00:00Z",
        "not_after": "2099-01-30T00:00:00Z",
        "created_at": "2026-11-01T00:00:00Z",
        **changes,
    }


def order(**changes: Any) -> dict[str, Any]:
    """One that is under way."""
    return {
        "order_id": ORDER,
        "account_id": ACCOUNT,
        "status": "pending",
        "domains": ["www.example.org"],
        "challenge_type": "http-01",
        "key_type": "ec-p256",
        "auto_renew": True,
        "challenges": [],
        "created_at": "2026-11-01T00:00:00Z",
        **changes,
    }


def valid_order(**changes: Any) -> dict[str, Any]:
    """The same with its certificate."""
    brought = {"status": "valid", "certificate_id": CERT, "version": 1, "not_after": "2099-01-30T00:00:00Z"}
    return order(**{**brought, **changes})


def failed_order(code: str = "challenge_failed", **changes: Any) -> dict[str, Any]:
    """The same with the CA's words, and what was seen."""
    refused = {
        "identifier": "www.example.org",
        "challenge_type": "http-01",
        "type": "urn:ietf:params:acme:error:unauthorized",
        "detail": "192.0.2.7: Invalid response",
    }
    seen = {
        "identifier": "www.example.org",
        "check": "http-01",
        "where": "192.0.2.7:80",
        "saw": "status 404",
        "ok": False,
    }
    error = {"code": code, "detail": "it failed", "identifiers": [refused]}
    return order(**{"status": "invalid", "error": error, "evidence": [seen], **changes})


def page(*items: dict[str, Any]) -> dict[str, Any]:
    """The only page of a list."""
    return {"items": list(items), "next_cursor": None}


def bulk(**changes: Any) -> dict[str, Any]:
    """A bulk renewal that is under way."""
    return {
        "id": BULK,
        "status": "running",
        "created_at": "2026-11-01T00:00:00Z",
        "note": "",
        "per_minute": 60.0,
        "total": 2,
        "started": 1,
        "skipped": 0,
        "renewed": 0,
        "failed": 0,
        "under_way": 1,
        **changes,
    }
