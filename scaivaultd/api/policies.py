"""May they? Judges a request by the policies there are, and says why in words.

Nothing is allowed unless a rule allows it. One rule must allow all of a request: its action, every name, account,
challenge type, key type and the number of names; two rules never add up. A rule that denies wins over all others,
and touches a request where any name, or anything a wildcard covers, is among its domains. What cannot be judged (an
unknown action, a name that is not in its normal form, an order without its names, a reference to a secret that may be
read in two ways) is refused.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
import tomllib
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol, TypeVar

import msgspec

from scaivaultd.api.dispatch import field_error
from scaivaultd.model.access import (
    ANY_TENANT,
    Decision,
    Policy,
    PolicyRule,
    Reason,
    Role,
    begins_with,
    domain_pattern,
    is_plain_reference,
    network_pattern,
    principal_pattern,
    secret_pattern,
)
from scaivaultd.model.errors import FieldError, InvalidRequest
from scaivaultd.model.names import Identifier, parse_identifiers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from scaivaultd.model.access import AccessRequest, AccountRef, RoleName
    from scaivaultd.model.principals import Principal

KEY_READ = "key.read"
"""The one action that is allowed by its own name only."""

_VIEWER = frozenset(
    {"account.read", "order.read", "cert.read", "dns_provider.read", "event.read", "sys.health", "sys.info"}
)
_ISSUER = _VIEWER | {"cert.issue", "cert.renew", "cert.update", "cert.confirm", "order.cancel", "secret.use"}
_OPERATOR = _ISSUER | {
    "cert.revoke",
    "cert.import",
    "cert.delete",
    "account.create",
    "account.update",
    "account.rotate_key",
    "dns_provider.create",
    "dns_provider.update",
    "dns_provider.delete",
    "dns_provider.test",
    "secret.write",
    "secret.list",
    "secret.delete",
}
_ADMIN = _OPERATOR | {
    "account.deactivate",
    "policy.read",
    "policy.write",
    "policy.delete",
    "token.create",
    "token.read",
    "token.revoke",
    "token.rotate",
    "audit.read",
    "backup.create",
    "sys.resume",
    "sys.reload",
    "master_key.read",
    "master_key.rotate",
    "master_key.unseal",
}

ROLES: Mapping[RoleName, Role] = MappingProxyType(
    {
        role.name: role
        for role in (
            Role(name="viewer", summary="sees certificates, orders, accounts and DNS providers", actions=_VIEWER),
            Role(name="issuer", summary="a viewer who orders and renews certificates", actions=_ISSUER),
            Role(name="operator", summary="an issuer who looks after what orders need", actions=_OPERATOR),
            Role(name="admin", summary="everything but reading private keys", actions=_ADMIN),
        )
    }
)
"""What each role may do. No role reads private keys."""

ACTIONS = _ADMIN | {KEY_READ}
"""Every action there is."""

_ORDERING = frozenset({"cert.issue", "cert.renew", "cert.update"})
_NAMED = frozenset(
    {
        "cert.issue",
        "cert.update",
        "cert.confirm",
        "cert.revoke",
        "cert.import",
        "cert.delete",
        "order.cancel",
        KEY_READ,
    }
)
_ABOUT_NAMES = _NAMED | {"cert.renew", "cert.read", "order.read"}
_ABOUT_ACCOUNT = frozenset({"account.create", "account.update", "account.rotate_key", "account.deactivate"})
_ABOUT_SECRET = frozenset({"secret.use", "secret.write", "secret.delete"})
_ABOUT_EVERYTHING = frozenset({"event.read"})
"""What cannot be shown in part: a rule for some names or accounts does not allow it, and one that denies some does."""
_RULES_SHOWN = 5
# Names without anything to normalise, which most are: lists are judged item by item, and IDNA takes its time.
_PLAIN_NAME = re.compile(r"(?:\*\.)?(?:(?!.{2}--)[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]{2,63}")
_NAME_MAX = 200

_SPELLINGS = (("domains", domain_pattern), ("ips", network_pattern), ("secrets", secret_pattern))

_Read = TypeVar("_Read", bound=msgspec.Struct)


class PublicSuffixes(Protocol):
    """The public suffix list, as `publicsuffixlist.PublicSuffixList(accept_unknown=False)` has it: a private CA may
    certify `db.corp`, and `corp` itself, which are on no list."""

    def publicsuffix(self, domain: str, /) -> str | None:
        """The public suffix that `domain` ends in, or is; None where the list knows of none."""
        ...


def decide(policies: Sequence[Policy], request: AccessRequest, suffixes: PublicSuffixes) -> Decision:
    """Judge a request. The reasons name each name, and, where it is refused, all that stands in the way."""
    return Rules(applying(policies, request.principal, request.tenant)).decide(request, suffixes)


def decide_action(policies: Sequence[Policy], request: AccessRequest) -> Decision:
    """Judge whether its principal may do its action to anything at all, whatever the request is about."""
    return Rules(applying(policies, request.principal, request.tenant)).decide_action(request)


def applying(policies: Iterable[Policy], principal: Principal, tenant: str) -> Sequence[Policy]:
    """Those that are for a principal in a tenant."""
    return [policy for policy in policies if _applies(policy, principal, tenant)]


class Rules:
    """The rules of the policies that are for one principal, kept at hand: lists are judged item by item."""

    def __init__(self, policies: Sequence[Policy]) -> None:
        """All of `policies` apply."""
        self.policies = policies
        self._all = [_Rule(policy, number) for policy in policies for number in range(1, len(policy.rules) + 1)]
        self._by_action: dict[str, _ForAction] = {}

    def decide(self, request: AccessRequest, suffixes: PublicSuffixes) -> Decision:
        """As the function."""
        if refused := _impossible(request) or _unjudgeable(request, suffixes):
            return Decision(allowed=False, reasons=refused)
        return self._judged(request)

    def allow(self, request: AccessRequest, suffixes: PublicSuffixes) -> bool:
        """The same without words."""
        if _impossible(request) or _unjudgeable(request, suffixes):
            return False
        rules = self._about(request.action)
        return not any(_touched(rule, request) for rule in rules.denying) and rules.granting_all(request) is not None

    def decide_action(self, request: AccessRequest) -> Decision:
        """As the function."""
        if refused := _impossible(request):
            return Decision(allowed=False, reasons=refused)
        return self._judged(msgspec.structs.replace(request, certificate=None, account=None, secret=None))

    def _about(self, action: str) -> _ForAction:
        """Of actions that there are only; there are a few dozen."""
        if (known := self._by_action.get(action)) is None:
            known = self._by_action[action] = _ForAction(self._all, action)
        return known

    def _judged(self, request: AccessRequest) -> Decision:
        rules = self._about(request.action)
        for rule in rules.denying:
            if touched := _touched(rule, request):
                return Decision(allowed=False, policy=rule.policy, rule=rule.number, reasons=touched)
        if (allowing := rules.granting_all(request)) is None:
            return Decision(allowed=False, reasons=tuple(_why_not(self.policies, rules, request)))
        return Decision(
            allowed=True,
            policy=allowing.policy,
            rule=allowing.number,
            reasons=tuple(_approvals(allowing, request)),
            quota=allowing.body.quota,
        )


class _Rule:
    """A rule in its place."""

    __slots__ = ("body", "number", "policy")

    def __init__(self, policy: Policy, number: int) -> None:
        self.policy = policy.name
        self.number = number
        self.body = policy.rules[number - 1]

    def __str__(self) -> str:
        return f"rule {self.number} of policy {self.policy}"


class _ForAction:
    """Those rules that say something of one action, and which of them may mean a name: found without asking each."""

    def __init__(self, rules: Iterable[_Rule], action: str) -> None:
        self.denying: list[_Rule] = []
        self.granting: list[_Rule] = []
        self._places: dict[str, list[int]] = {}
        self._of_addresses: list[int] = []
        for rule in rules:
            if rule.body.effect == "deny":
                if _denies(rule.body, action):
                    self.denying.append(rule)
            elif _grants(rule.body, action):
                self._keep(rule)

    def _keep(self, rule: _Rule) -> None:
        place = len(self.granting)
        self.granting.append(rule)
        for pattern in rule.body.domains:
            self._places.setdefault(pattern, []).append(place)
        if rule.body.ips:
            self._of_addresses.append(place)

    def granting_all(self, request: AccessRequest) -> _Rule | None:
        """The first rule that allows all of a request."""
        names = _names_in(request)
        for rule in self.allowing(names[0]) if names else self.granting:
            has_all = all(_pattern_allowing(rule.body, each) for each in names[1:])
            if has_all and not any(_objections_to_terms(rule, request)):
                return rule
        return None

    def allowing(self, name: Identifier) -> Iterator[_Rule]:
        """Those that allow a name, in their order."""
        for place in self._of_addresses if name.type == "ip" else self._places_of(name.base):
            if _pattern_allowing(self.granting[place].body, name):
                yield self.granting[place]

    def _places_of(self, name: str) -> Sequence[int]:
        above = name.partition(".")[2]
        patterns = [name, "**", f"*.{above}"]
        while above:
            patterns.append(f"**.{above}")
            above = above.partition(".")[2]
        return sorted({place for pattern in patterns for place in self._places.get(pattern, ())})


def _impossible(request: AccessRequest) -> tuple[Reason, ...]:
    """What no policy can allow this principal."""
    if request.action not in ACTIONS:
        return (_no("action", f"there is no action {request.action!r}{_meant(request.action)}"),)
    principal = request.principal
    if principal.scopes and not any(_covers_action(scope, request.action) for scope in principal.scopes):
        return (_no("action", f"{principal} is confined to {', '.join(principal.scopes)}"),)
    if principal.tenant not in (None, request.tenant):
        return (_no("tenant", f"{principal} belongs to another tenant"),)
    return ()


def _unjudgeable(request: AccessRequest, suffixes: PublicSuffixes) -> tuple[Reason, ...]:
    """What is missing, or wrong, of what a request is about."""
    if request.action in _ABOUT_ACCOUNT and request.account is None:
        return (_no("account", f"{request.action} is judged by the account, and none is given"),)
    if request.action in _ABOUT_SECRET and request.secret is None:
        return (_no("secret", f"{request.action} is judged by the reference, and none is given"),)
    terms = request.certificate
    if terms is None:
        if request.action in _NAMED:
            return (_no("names", f"{request.action} is judged by names, and none are given"),)
        return ()
    if not terms.names:
        return (_no("names", "a certificate has at least one name"),)
    if not terms.accounts and request.action in _ORDERING:
        return (_no("account", "an order has at least one account"),)
    refused = ((name, _odd(name) or _nobodys(name, request.action, suffixes)) for name in terms.names)
    return tuple(_no(str(name), why) for name, why in refused if why)


def _nobodys(name: Identifier, action: str, suffixes: PublicSuffixes) -> str | None:
    if action not in _ORDERING or name.type == "ip" or suffixes.publicsuffix(name.base) != name.base:
        return None
    return f"{name.base} is a public suffix: it is nobody's to certify"


def _odd(name: Identifier) -> str | None:
    if name.type == "dns" and len(name.value) <= _NAME_MAX and _PLAIN_NAME.fullmatch(name.value):
        return None
    try:
        is_normal = parse_identifiers([name.value], public_ca=False) == (name,)
    except InvalidRequest:
        is_normal = False
    if not is_normal:
        return "not in its normal form (A-labels, lower case, no trailing dot)"
    if name.type == "ip":
        address = ipaddress.ip_address(name.value)
        is_mapped = isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None
        return "an IPv4 address in the form of an IPv6 address" if is_mapped else None
    return None


def _applies(policy: Policy, principal: Principal, tenant: str) -> bool:
    if policy.tenant not in (ANY_TENANT, tenant):
        return False
    return policy.name in principal.policies or any(_is_for(each, principal) for each in policy.principals)


def _is_for(pattern: str, principal: Principal) -> bool:
    forms = [str(principal)]
    if principal.name is not None:
        forms.append(f"{principal.kind}:{principal.name}")
    if pattern.endswith("*"):
        return any(form.startswith(pattern[:-1]) for form in forms)
    return pattern in forms


def _covers_action(pattern: str, action: str) -> bool:
    """Whether an action that somebody may take is meant: by its name, its family, or `*`."""
    return pattern == action or (action != KEY_READ and _is_of_family(pattern, action))


def _is_of_family(pattern: str, action: str) -> bool:
    return pattern == "*" or (pattern.endswith(".*") and action.startswith(pattern[:-1]))


def _grants(rule: PolicyRule, action: str) -> bool:
    by_pattern = any(_covers_action(each, action) for each in rule.actions)
    return by_pattern or any(action in ROLES[each].actions for each in rule.roles)


def _denies(rule: PolicyRule, action: str) -> bool:
    # What is hard to give is easy to take: `*` and `key.*` deny reading keys too.
    return _grants(rule, action) or any(_is_of_family(each, action) for each in rule.actions)


def _touched(rule: _Rule, request: AccessRequest) -> tuple[Reason, ...]:
    """What of a request a rule denies; nothing unless each condition it has is met by some part of it."""
    body, terms = rule.body, request.certificate
    reasons = [_no("action", f"{rule} denies {request.action}")]
    is_about_some = request.action not in _ABOUT_EVERYTHING
    if is_about_some and (body.domains or body.ips):
        names = terms.names if terms is not None else ()
        hits = [(name, _pattern_touching(body, name)) for name in names]
        reasons = [_no(str(name), f"{rule} denies it by {hit!r}") for name, hit in hits if hit]
    has_account = body.accounts is None or any(_is_among(each, body.accounts) for each in _accounts_in(request))
    if is_about_some and not has_account:
        return ()
    if body.challenges is not None and (terms is None or terms.challenge_type not in body.challenges):
        return ()
    if body.key_types is not None and (terms is None or terms.key_type not in body.key_types):
        return ()
    if body.secrets is not None and not _touches_secret(body.secrets, request.secret):
        return ()
    return tuple(reasons)


def _touches_secret(patterns: Sequence[str], reference: str | None) -> bool:
    if reference is None:
        return False
    # Who knows where it leads?
    return not is_plain_reference(reference) or any(begins_with(each, reference) for each in patterns)


def _pattern_touching(rule: PolicyRule, name: Identifier) -> str | None:
    if name.type == "ip":
        return next((each for each in rule.ips if _is_in(name.value, each)), None)
    return next((each for each in rule.domains if _matches(each, name.base) or _is_below(each, name)), None)


def _is_below(pattern: str, name: Identifier) -> bool:
    """Whether a wildcard covers names that a pattern means: `*.x` covers `admin.x`."""
    return name.is_wildcard and pattern.partition(".")[2] == name.base


def _matches(pattern: str, name: str) -> bool:
    """Whether a pattern means a name; both in A-labels, lower case, without a trailing dot."""
    if pattern == "**":
        return True
    if pattern.startswith("**."):
        return name.endswith(pattern[2:])
    if pattern.startswith("*."):
        return name.partition(".")[2] == pattern[2:]
    return name == pattern


def _is_in(address: str, network: str) -> bool:
    return ipaddress.ip_address(address) in ipaddress.ip_network(network)


def _accounts_in(request: AccessRequest) -> Sequence[AccountRef]:
    ordering = request.certificate.accounts if request.certificate is not None else ()
    return ordering if request.account is None else (*ordering, request.account)


def _is_among(account: AccountRef, listed: Sequence[str]) -> bool:
    # An id is no name: an account that is named like the id of another one is not that one.
    return any(each == (account.id if each.startswith("acme_") else account.name) for each in listed)


def _is_for_some(rule: PolicyRule) -> bool:
    by_name = bool(rule.domains or rule.ips) and "**" not in rule.domains
    return by_name or rule.accounts is not None


def _pattern_allowing(rule: PolicyRule, name: Identifier) -> str | None:
    if name.type == "ip":
        return next((each for each in rule.ips if _is_in(name.value, each)), None)
    if name.is_wildcard and not rule.wildcards:
        return None
    return next((each for each in rule.domains if _matches(each, name.base)), None)


def _near_miss(rule: PolicyRule, name: Identifier) -> str:
    """Why a name is not allowed, with the pattern that came nearest."""
    if name.type == "ip":
        return f"its networks do not hold {name}" if rule.ips else "it allows no addresses (`ips`)"
    if name.is_wildcard:
        if not any(_matches(each, name.base) for each in rule.domains):
            return f"a wildcard certificate needs its base, and {name.base} is not among the domains"
        return f"{name.base} is among the domains, but wildcard certificates are not allowed (`wildcards = true`)"
    if not rule.domains:
        return "it allows no host names (`domains`)"
    near = (_how_far(pattern, name.base) for pattern in rule.domains)
    return next((each for each in near if each), "it is not among the domains")


def _how_far(pattern: str, name: str) -> str | None:
    """What to say of a pattern that does not mean a name although it ends alike."""
    base = pattern.removeprefix("**.").removeprefix("*.")
    if name == base:
        return f"{pattern!r} does not mean {base} itself"
    if not name.endswith(f".{base}"):
        return None
    means = f"names one label below {base} only" if pattern.startswith("*.") else "that name only"
    return f"{pattern!r} means {means}"


def _objections_to_terms(rule: _Rule, request: AccessRequest) -> Iterator[Reason]:
    body, terms = rule.body, request.certificate
    if request.action in _ABOUT_EVERYTHING and _is_for_some(body):
        yield _no("action", f"{rule} is for some names or accounts only, and {request.action} is about all")
    is_order = terms is not None and request.action in _ORDERING
    if body.accounts is not None and (request.action in _ABOUT_NAMES or request.action.startswith("account.")):
        for account in _accounts_in(request):
            if not _is_among(account, body.accounts):
                yield _no("account", f"{rule} takes {', '.join(body.accounts)}, not {account.name}")
    if body.secrets is not None and request.secret is not None and request.action.startswith("secret."):
        is_plain = is_plain_reference(request.secret)
        if not is_plain or not any(begins_with(each, request.secret) for each in body.secrets):
            # The reference is not repeated: it may be the secret itself, given by mistake.
            yield _no("secret", f"{rule} takes {', '.join(body.secrets[:_RULES_SHOWN])}, and not this one")
    if terms is None or not is_order:
        return
    if body.challenges is not None and terms.challenge_type not in body.challenges:
        yield _no("challenge_type", f"{rule} takes {', '.join(body.challenges)}, not {terms.challenge_type}")
    if body.key_types is not None and terms.key_type not in body.key_types:
        yield _no("key_type", f"{rule} takes {', '.join(body.key_types)}, not {terms.key_type}")
    if body.max_names is not None and len(terms.names) > body.max_names:
        yield _no("names", f"{rule} takes at most {body.max_names} names, not {len(terms.names)}")


def _approvals(rule: _Rule, request: AccessRequest) -> Iterator[Reason]:
    yield _yes("action", f"{rule} allows {request.action}")
    if request.certificate is None or request.action not in _ABOUT_NAMES:
        return
    for name in request.certificate.names:
        yield _yes(str(name), f"{rule} allows it by {_pattern_allowing(rule.body, name)!r}")


def _why_not(applying: Sequence[Policy], rules: _ForAction, request: AccessRequest) -> Iterator[Reason]:
    where = f"in tenant {request.tenant}"
    if not applying:
        yield _no("action", f"no policy {where} is for {request.principal}")
        return
    if not rules.granting:
        names = ", ".join(policy.name for policy in applying[:_RULES_SHOWN])
        yield _no("action", f"no policy that is for {request.principal} {where} allows {request.action}: {names}")
        return
    names_in_it = _names_in(request)
    reasons = [_of_name(each, rules) for each in names_in_it]
    reasons += [
        reason for rule in _nearest(rules, names_in_it)[:_RULES_SHOWN] for reason in _objections_to_terms(rule, request)
    ]
    if all(reason.allowed for reason in reasons):
        reasons.append(_no("names", "each is allowed, but no rule allows all: ask for several certificates"))
    yield from reasons


def _nearest(rules: _ForAction, names: Sequence[Identifier]) -> Sequence[_Rule]:
    """Where rules allow all the names, those of other names would only confuse."""
    if not names:
        return rules.granting
    allowing = rules.allowing(names[0])
    return [rule for rule in allowing if all(_pattern_allowing(rule.body, each) for each in names)] or rules.granting


def _names_in(request: AccessRequest) -> Sequence[Identifier]:
    return () if request.certificate is None or request.action not in _ABOUT_NAMES else request.certificate.names


def _of_name(name: Identifier, rules: _ForAction) -> Reason:
    """What all rules that grant the action say of one name."""
    if (rule := next(rules.allowing(name), None)) is not None:
        return _yes(str(name), f"{rule} allows it by {_pattern_allowing(rule.body, name)!r}")
    near = rules.granting[:_RULES_SHOWN]
    return _no(str(name), "; ".join(f"{rule}: {_near_miss(rule.body, name)}" for rule in near))


def _no(about: str, detail: str) -> Reason:
    return Reason(about=about, allowed=False, detail=detail)


def _yes(about: str, detail: str) -> Reason:
    return Reason(about=about, allowed=True, detail=detail)


def _meant(word: str) -> str:
    near = difflib.get_close_matches(word.lower(), sorted(ACTIONS), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def policy_from_request(
    name: str, principals: Sequence[str], rules: Sequence[PolicyRule], suffixes: PublicSuffixes
) -> Policy:
    """The policy that a request describes; its rules are in normal form already, or would be none.

    Raises:
        InvalidRequest: with a pointer to each mistake.
    """
    mistakes: list[FieldError] = []
    _each(list(principals), "/principals", principal_pattern, mistakes)
    for place, rule in enumerate(rules):
        mistakes.extend(_nonsense(rule, f"/rules/{place}", suffixes))
    if mistakes:
        raise _invalid(mistakes)
    return Policy(name=name, principals=tuple(principals), rules=tuple(rules))


def policies_from_toml(text: str, suffixes: PublicSuffixes) -> tuple[Policy, ...]:
    """Read `[[policy]]` tables; as `policies_from`."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _invalid([_mistake("", "bad_toml", f"this is not TOML: {error}")]) from None
    return policies_from(document, suffixes)


def policies_from(document: object, suffixes: PublicSuffixes) -> tuple[Policy, ...]:
    """Read a decoded document, `{"policy": [...]}`; patterns come out in their only spelling.

    Raises:
        InvalidRequest: with a pointer to each mistake.
    """
    given = document.get("policy", []) if isinstance(document, dict) and document.keys() <= {"policy"} else None
    if not isinstance(given, list):
        raise _invalid([_mistake("", "invalid_value", "expected a list `policy` and nothing else")])
    mistakes: list[FieldError] = []
    policies: dict[str, Policy] = {}
    for place, each in enumerate(given):
        policy = _policy(each, f"/policy/{place}", suffixes, mistakes)
        if policy is not None and policy.name in policies:
            detail = f"there are two policies {policy.name!r}"
            mistakes.append(_mistake(f"/policy/{place}/name", "duplicate", detail))
        elif policy is not None:
            policies[policy.name] = policy
    if mistakes:
        raise _invalid(mistakes)
    return tuple(policies.values())


def _policy(given: object, pointer: str, suffixes: PublicSuffixes, mistakes: list[FieldError]) -> Policy | None:
    if not isinstance(given, dict):
        mistakes.append(_mistake(pointer, "invalid_value", "expected a policy"))
        return None
    rules = given.get("rule", [])
    if not isinstance(rules, list):
        mistakes.append(_mistake(f"{pointer}/rule", "invalid_value", "expected a list of rules"))
        return None
    read = [_rule(each, f"{pointer}/rule/{place}", suffixes, mistakes) for place, each in enumerate(rules)]
    outer = dict(given)
    outer.pop("rule", None)
    outer["principals"] = _each(given.get("principals", []), f"{pointer}/principals", principal_pattern, mistakes)
    policy = _converted(outer, Policy, pointer, mistakes)
    return policy and msgspec.structs.replace(policy, rules=tuple(rule for rule in read if rule is not None))


def _rule(given: object, pointer: str, suffixes: PublicSuffixes, mistakes: list[FieldError]) -> PolicyRule | None:
    if not isinstance(given, dict):
        mistakes.append(_mistake(pointer, "invalid_value", "expected a rule"))
        return None
    before = len(mistakes)
    normal = dict(given)
    for member, spelling in _SPELLINGS:
        if member in given:
            normal[member] = _each(given[member], f"{pointer}/{member}", spelling, mistakes)
    rule = _converted(normal, PolicyRule, pointer, mistakes)
    if rule is not None and len(mistakes) == before:
        mistakes.extend(_nonsense(rule, pointer, suffixes))
    return rule


def _each(given: object, pointer: str, spelling: Callable[[str], str], mistakes: list[FieldError]) -> object:
    """The texts of a list in their only spelling, without those that have none."""
    if not isinstance(given, list) or not all(isinstance(each, str) for each in given):
        return given
    normal = []
    for place, text in enumerate(given):
        try:
            normal.append(spelling(text))
        except ValueError as error:
            mistakes.append(_mistake(f"{pointer}/{place}", "bad_pattern", str(error)))
    return normal


def _converted(given: object, kind: type[_Read], pointer: str, mistakes: list[FieldError]) -> _Read | None:
    try:
        return msgspec.convert(given, kind)
    except msgspec.ValidationError as error:
        mistakes.append(field_error(str(error), kind, pointer))
        return None


def _nonsense(rule: PolicyRule, pointer: str, suffixes: PublicSuffixes) -> Iterator[FieldError]:
    """What a rule says that cannot be meant."""
    if not rule.actions and not rule.roles:
        yield _mistake(f"{pointer}/actions", "missing_field", "give actions, or roles")
    for place, action in enumerate(rule.actions):
        if detail := _odd_action(action, rule):
            yield _mistake(f"{pointer}/actions/{place}", "unknown_action", detail)
    for member in ("accounts", "challenges", "key_types", "secrets"):
        if getattr(rule, member) == ():
            yield _mistake(f"{pointer}/{member}", "empty", "an empty list means none; leave it out for all")
    yield from (_odd_denial if rule.effect == "deny" else _odd_allowance)(rule, pointer, suffixes)


def _odd_action(pattern: str, rule: PolicyRule) -> str | None:
    if not any(pattern == action or _is_of_family(pattern, action) for action in ACTIONS):
        return f"there is no action {pattern[:80]!r}{_meant(pattern)}"
    if rule.effect == "allow" and not any(_covers_action(pattern, action) for action in ACTIONS):
        return f"{pattern!r} allows nothing: write {KEY_READ!r}"
    return None


def _odd_denial(rule: PolicyRule, pointer: str, suffixes: PublicSuffixes) -> Iterator[FieldError]:
    del suffixes
    for member in ("wildcards", "max_names", "quota"):
        if getattr(rule, member):
            yield _mistake(f"{pointer}/{member}", "not_for_this", "a rule that denies has no use for it")


def _odd_allowance(rule: PolicyRule, pointer: str, suffixes: PublicSuffixes) -> Iterator[FieldError]:
    about_names = sorted(action for action in _ABOUT_NAMES if _grants(rule, action))
    if about_names and not rule.domains and not rule.ips:
        detail = f"{about_names[0]} is judged by names: give domains (`**` for all), or ips"
        yield _mistake(f"{pointer}/domains", "missing_field", detail)
    for place, pattern in enumerate(rule.domains):
        base = pattern.removeprefix("**.").removeprefix("*.")
        if pattern != "**" and suffixes.publicsuffix(base) == base:
            detail = f"{pattern!r}: {base} is a public suffix, under which anybody may have names"
            yield _mistake(f"{pointer}/domains/{place}", "public_suffix", detail)


def _mistake(pointer: str, code: str, detail: str) -> FieldError:
    return FieldError(pointer=pointer, code=code, detail=detail)


def _invalid(mistakes: Sequence[FieldError]) -> InvalidRequest:
    more = f" (and {len(mistakes) - 1} more, see errors)" if len(mistakes) > 1 else ""
    where = f"{mistakes[0].pointer}: " if mistakes[0].pointer else ""
    return InvalidRequest(f"{where}{mistakes[0].detail.removeprefix(where)}{more}", mistakes)
