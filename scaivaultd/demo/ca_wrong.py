"""Downloads that a client must refuse, made to order for its own key and names."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from scaivaultd.demo.ca_identifiers import Identifier
from scaivaultd.demo.ca_x509 import (
    Hierarchy,
    LeafPlan,
    leaf_plan,
    make_intermediate,
    make_root,
    pem,
    private_key_pem,
    sign_leaf,
)

if TYPE_CHECKING:
    from scaivaultd.demo.ca_misbehaviour import WrongCertificate


def wrong_download(
    kind: WrongCertificate, good: x509.Certificate, plan: LeafPlan, hierarchy: Hierarchy, now: datetime
) -> bytes:
    """A body with exactly one fault. `endless` is one chain, to be repeated by the sender."""
    chain = hierarchy.chain_pem(good).encode()
    match kind:
        case "endless":
            return chain
        case "leaf_only":
            return pem(good).encode()
        case "with_private_key":
            return chain + private_key_pem(ec.generate_private_key(ec.SECP256R1()))
        case "trailing_garbage":
            return chain + b"and nothing else\n"
        case "not_pem":
            return b"<html><body>Please log in</body></html>"
        case "broken_chain":
            return (pem(good) + pem(_stranger(now))).encode()
        case "self_signed":
            return pem(_self_signed(plan, now)).encode()
        case _:
            return hierarchy.chain_pem(hierarchy.issue(_wrong_plan(kind, plan, now))).encode()


def _wrong_plan(kind: WrongCertificate, plan: LeafPlan, now: datetime) -> LeafPlan:
    lifetime = plan.not_after - plan.not_before
    match kind:
        case "other_key":
            return msgspec.structs.replace(plan, public_key=ec.generate_private_key(ec.SECP256R1()).public_key())
        case "other_names":
            return msgspec.structs.replace(plan, identifiers=(Identifier("dns", "other.example"),))
        case "expired":
            return leaf_plan(plan.public_key, plan.identifiers, now - lifetime - timedelta(days=1), lifetime)
        case "not_yet_valid":
            return leaf_plan(plan.public_key, plan.identifiers, now + timedelta(days=1), lifetime)
        case "is_ca":
            return msgspec.structs.replace(plan, is_ca=True)
        case "no_server_auth":
            return msgspec.structs.replace(plan, usage=ExtendedKeyUsageOID.CLIENT_AUTH)
        case _:
            raise AssertionError(kind)


def _stranger(now: datetime) -> x509.Certificate:
    """An intermediate of the right name with another key: only the signature tells."""
    stranger = make_intermediate(make_root("Development Root", now), ec.generate_private_key(ec.SECP256R1()), now)
    return stranger.certificate


def _self_signed(plan: LeafPlan, now: datetime) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, plan.identifiers[0].value[:64])])
    return sign_leaf(msgspec.structs.replace(plan, subject=name, issuer_name=name), make_root("nobody", now))
