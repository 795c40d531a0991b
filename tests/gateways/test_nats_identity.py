"""Who asks, and where an answer may go, as tables: each row is somebody who would like to be another one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from scaivaultd.gateways.nats_identity import Asked, Callers, Ingress, how_to_ask, vouches_for_accounts
from scaivaultd.gateways.nkeys import KeyPair
from scaivaultd.model.principals import Principal
from scaivaultd.plugin import Secret

ROOT = "scaivault.v1"
EVENTS = "scaivault.events"
CALLOUT = Ingress(root=ROOT, identity="auth_callout")
SUBJECT = Ingress(root=ROOT, identity="subject_token", account="APP")
IMPORT = Ingress(root=ROOT, identity="account_import")
TRUSTED = Ingress(root=ROOT, identity="trusted")
LOCAL = Ingress(root=ROOT, identity="local")
USER_KEY = KeyPair("U", bytes(32)).public
FIXED = "2.12.6"


class Tokens:
    """One good token."""

    def by_token(self, token: Secret, address: str | None) -> Principal | None:
        return None

    def by_token_id(self, token_id: str) -> Principal | None:
        return Principal(kind="token", id=token_id, name="web") if token_id == "Ab3dEf9h" else None


@pytest.fixture
def callers() -> Callers:
    return Callers(Tokens(), closed=[ROOT, "scaivault.apps", EVENTS])


def asked(
    subject: str = f"{ROOT}.sys.info",
    reply: str = "_INBOX.x.y",
    *,
    headers: dict[str, str] | None = None,
    version: str = FIXED,
) -> Asked:
    return Asked(subject=subject, reply=reply, headers=headers or {}, server_version=version)


def told(**info: Any) -> dict[str, str]:
    return {"Nats-Request-Info": json.dumps(info)}


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("_INBOX_Ab3dEf9h.x", True),
        ("_INBOX_Ab3dEf9h.x.y", True),
        ("", False),
        ("_INBOX_Ab3dEf9h", False),
        ("_INBOX_Ab3dEf9h.", False),
        ("_INBOX_Ab3dEf9h..x", False),
        ("_INBOX_Ab3dEf9h.x\x0by", False),
        ("_INBOX_Ab3dEf9h.\u00a0", False),
        ("_INBOX_Ab3dEf9h.*", False),
        ("_INBOX_Ab3dEf9h.>", False),
        ("_INBOX_Ab3dEf9hx.y", False),
        ("_INBOX_Ab3dEf9i.x", False),
        ("_INBOX.x", False),
        (f"{EVENTS}.x", False),
        ("$JS.API.INFO", False),
    ],
)
def test_holders_of_tokens_are_answered_in_their_own_inbox(callers: Callers, reply: str, expected: bool) -> None:
    """Anywhere else the daemon would publish for them what they may not."""
    assert callers.may_answer(CALLOUT, asked(f"{ROOT}.as.Ab3dEf9h.sys.info", reply)) is expected


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("_INBOX.x.y", True),
        ("_INBOX_web.x", True),
        ("_R_.abc.def", True),
        ("my.replies", True),
        ("scaivault.v1x.y", True),
        (ROOT, False),
        (f"{ROOT}.as.app.tokens.create", False),
        ("scaivault.apps.sys.info", False),
        (EVENTS, False),
        (f"{EVENTS}.certificate.issued.x", False),
        ("_INBOX_scaivaultd", False),
        ("_INBOX_scaivaultd.x", False),
        ("$JS.API.STREAM.DELETE.X", False),
        ("$SYS.REQ.USER.AUTH", False),
        ("$SRV.PING", False),
        ("$", False),
        ("a.*", False),
        ("a.>", False),
        (">", False),
        ("a..b", False),
        (".a", False),
        ("a.\x0c", False),
    ],
)
@pytest.mark.parametrize("ingress", [SUBJECT, IMPORT, TRUSTED, LOCAL])
def test_no_answer_goes_where_it_would_be_more_than_one(
    callers: Callers, ingress: Ingress, reply: str, expected: bool
) -> None:
    """An answer below our roots would be a request, below the events an event, and JetStream would obey it."""
    assert callers.may_answer(ingress, asked(reply=reply)) is expected


def test_a_request_without_a_reply_subject_was_not_sent_by_the_user_in_its_subject(callers: Callers) -> None:
    """Streams republish messages below subjects that their owner need not be allowed to publish to."""
    assert not callers.may_answer(SUBJECT, asked(f"{ROOT}.as.web.sys.info", ""))
    assert not callers.may_answer(CALLOUT, asked(f"{ROOT}.as.Ab3dEf9h.sys.info", ""))
    assert callers.may_answer(TRUSTED, asked(reply=""))


def test_a_token_is_looked_up_at_every_request(callers: Callers) -> None:
    """Revocation holds at once, whatever connections there are."""
    good = callers.caller(CALLOUT, asked(f"{ROOT}.as.Ab3dEf9h.sys.info", "_INBOX_Ab3dEf9h.x"))
    assert (str(good.principal), good.takes_keys) == ("token:Ab3dEf9h", True)
    gone = callers.caller(CALLOUT, asked(f"{ROOT}.as.Ab3dEf9i.sys.info", "_INBOX_Ab3dEf9i.x"))
    assert gone.principal is None
    assert "revoked" in gone.refusal


@pytest.mark.parametrize(
    ("user", "reply", "principal", "takes_keys"),
    [
        ("web", "_INBOX_web.x", "nats:APP/web", True),
        ("web", "_INBOX.x", "nats:APP/web", False),
        ("web", "_INBOX_app.x", "nats:APP/web", False),
        ("web", "_INBOX_webx.y", "nats:APP/web", False),
        ("w/b", "_INBOX.x", "None", False),
        ("", "_INBOX.x", "None", False),
        ("x" * 129, "_INBOX.x", "None", False),
        ("m\u00fcller", "_INBOX.x", "None", False),
    ],
)
def test_the_subject_names_the_user(callers: Callers, user: str, reply: str, principal: str, takes_keys: bool) -> None:
    """And keys go to that user's own inbox only."""
    caller = callers.caller(SUBJECT, asked(f"{ROOT}.as.{user}.sys.info", reply))
    assert (str(caller.principal), caller.takes_keys) == (principal, takes_keys)


@pytest.mark.parametrize("user", ["local", "trusted"])
def test_no_user_has_the_name_of_what_the_daemon_trusts(callers: Callers, user: str) -> None:
    """Built-in policies give those two everything: a NATS user may happen to be called so."""
    ingress = Ingress(root=ROOT, identity="subject_token")
    assert callers.caller(ingress, asked(f"{ROOT}.as.{user}.sys.info")).principal is None
    assert callers.caller(IMPORT, asked(headers=told(acc="$G", user=user))).principal is None
    assert callers.caller(SUBJECT, asked(f"{ROOT}.as.{user}.sys.info")).principal is not None


@pytest.mark.parametrize(
    ("headers", "principal"),
    [
        (told(acc="APP", user="web"), "nats:APP/web"),
        (told(acc="APP", user=USER_KEY), f"nkey:{USER_KEY}"),
        (told(acc="APP", nkey=USER_KEY), f"nkey:{USER_KEY}"),
        (told(acc="APP", user="U" + "A" * 55), "nats:APP/U" + "A" * 55),
        (told(acc="APP"), "None"),
        (told(user="web"), "None"),
        (told(acc="", user="web"), "None"),
        (told(acc="APP", user=["web"]), "None"),
        (told(acc="A/B", user="web"), "None"),
        ({"Nats-Request-Info": "{"}, "None"),
        ({"Nats-Request-Info": '{"acc":"APP","user":"web"}x'}, "None"),
        ({"Nats-Request-Info": ""}, "None"),
        ({"nats-request-info": '{"acc":"APP","user":"web"}'}, "None"),
        ({}, "None"),
    ],
)
def test_the_servers_header_names_the_user_of_another_account(
    callers: Callers, headers: dict[str, str], principal: str
) -> None:
    """In its own spelling, whole, and with a user in it."""
    caller = callers.caller(IMPORT, asked(headers=headers))
    assert (str(caller.principal), caller.takes_keys) == (principal, False)
    assert bool(caller.refusal) is (principal == "None")


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("2.11.15", True),
        ("2.11.16", True),
        ("2.12.6", True),
        ("2.12.7-RC.1", True),
        ("2.13.0", True),
        ("2.15.1", True),
        ("3.0.0", True),
        ("2.15.1+build.7", True),
        ("2.11.14", False),
        ("2.11.15-RC.2", False),
        ("2.12.0", False),
        ("2.12.5", False),
        ("2.12.6-beta", False),
        ("2.10.29", False),
        ("2.9.10", False),
        ("", False),
        ("newest", False),
        ("2.15", False),
    ],
)
def test_only_servers_that_overwrite_the_header_are_believed(callers: Callers, version: str, expected: bool) -> None:
    """Before, a leaf node could write what it liked."""
    assert vouches_for_accounts(version) is expected
    caller = callers.caller(IMPORT, asked(headers=told(acc="APP", user="web"), version=version))
    assert (caller.principal is not None) is expected
    assert expected or "CVE-2026-33246" in caller.refusal


@pytest.mark.parametrize("ingress", [SUBJECT, IMPORT, TRUSTED])
def test_keys_go_anywhere_only_where_the_administrator_says_so(callers: Callers, ingress: Ingress) -> None:
    """`key_replies = "any"` is a decision about one root."""
    request = asked(f"{ROOT}.as.web.sys.info", headers=told(acc="APP", user="web"))
    anywhere = Ingress(root=ROOT, identity=ingress.identity, account=ingress.account, keys_to_any=True)
    assert not callers.caller(ingress, request).takes_keys
    assert callers.caller(anywhere, request).takes_keys


def test_the_two_of_the_daemon_are_not_one_of_many(callers: Callers) -> None:
    """Who shares a name with everybody shares no bound with them."""
    assert str(callers.caller(LOCAL, asked()).principal) == "nats:$G/local"
    assert str(callers.caller(TRUSTED, asked()).principal) == "nats:$G/trusted"
    assert not callers.caller(LOCAL, asked()).is_one
    assert callers.caller(SUBJECT, asked(f"{ROOT}.as.web.sys.info")).is_one


def test_whoever_asks_without_a_name_is_told_how() -> None:
    """The first request of everybody goes to the wrong subject."""
    assert f"{ROOT}.as.TOKEN_ID" in how_to_ask(CALLOUT)
    assert f"{ROOT}.as.USER" in how_to_ask(SUBJECT)
