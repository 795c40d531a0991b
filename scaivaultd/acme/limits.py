"""The ledger of a CA's rate limits: what we spent, what is left, and when a request may go.

One ledger stands for one CA. It is a value: what changes it returns another. Invariants:

* a bucket is kept as the moment at which it will be full again (a generic cell rate algorithm), so
  refilling costs nothing, and a bucket that is full need not be kept at all;
* `forecast` and `spend` ask the same question, so that the moment forecast is the earliest at which
  spending succeeds, as long as nobody else spends meanwhile;
* the CA has the last word: what it refused stays closed until the time it named, whatever we counted;
* every entry knows when it was written. A clock that stands before that was set back: the entry
  moves back with it, a debt stays as large as it was, and nobody waits for a time that was a mistake.

Rules come from `limit_rules` or the configuration and are not part of what is stored: keep each
`Bucket` and `Closure` as a document of its own under its key, and `Ledger(rules=..., buckets=...)`
again from them. `swept` says what may be deleted.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import msgspec

from scaivaultd.acme.limit_rules import (
    LIMITS,
    NewOrder,
    Rule,
    account_of,
    cause_in,
    limit_name,
    name_within,
    subjects_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from scaivaultd.acme.limit_rules import Kind, Refusal, Request, Scope

PAUSED = "paused"
"""The limit of a name that the CA pauses (after 1152 failures in a row, at Let's Encrypt) until a human acts."""

UNNAMED = "unnamed"
"""The limit of a refusal that does not say which limit it is about."""

_CLOSED_MAX = timedelta(days=31)
_UNNAMED_MAX = timedelta(hours=1)
UNTIMED = timedelta(minutes=1)
"""How long a refusal closes what it is about when the CA names no time."""


class Bucket(msgspec.Struct, frozen=True, kw_only=True):
    """What is spent of one budget: full again at `full_at`; as written at `at`."""

    at: datetime
    full_at: datetime


class Closure(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A refusal of the CA: nothing goes before `until`, None for a human's word; as written at `at`.

    `binds_exempt`: the CA refused what we held to be exempt, so nobody is exempt until then.
    """

    at: datetime
    until: datetime | None
    binds_exempt: bool = False


class Wait(msgspec.Struct, frozen=True, kw_only=True):
    """Why a request must wait; `until` is None when time alone does not help (a paused name)."""

    limit: str
    subject: str
    until: datetime | None


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """One budget as people see it; moments that lie behind us are None.

    `left` includes the `reserved` last tokens, which only renewals may take; `refills_at` brings
    the next token, `full_at` the last. `new_at` and `renewal_at` say when a new certificate and a
    renewal without ARI may go, where `needs_human` does not hold both. `amount` and
    `window_seconds` are None for a limit that only a refusal told us of.
    """

    limit: str
    subject: str
    amount: int | None = None
    window_seconds: int | None = None
    used: int | None = None
    left: int | None = None
    reserved: int = 0
    refills_at: datetime | None = None
    full_at: datetime | None = None
    new_at: datetime | None = None
    renewal_at: datetime | None = None
    needs_human: bool = False


class Spent(msgspec.Struct, frozen=True):
    """The ledger afterwards, to be kept in either case, and why the request must wait; None: it may go."""

    ledger: Ledger
    wait: Wait | None


class Ledger(msgspec.Struct, frozen=True, kw_only=True):
    """The budgets at one CA that are not full, and what it has refused.

    Raises:
        ValueError: two rules limit the same thing over the same time.
    """

    rules: tuple[Rule, ...] = ()
    buckets: dict[str, Bucket] = {}
    closures: dict[str, Closure] = {}

    def __post_init__(self) -> None:
        """Two rules of one key would share a bucket and mistake each other's count for their own."""
        keys = [_prefix(rule) for rule in self.rules]
        if twice := {each for each in keys if keys.count(each) > 1}:
            raise ValueError(f"more than one rule for {', '.join(sorted(twice))} seconds")

    def forecast(self, now: datetime, request: Request) -> Wait | None:
        """What holds the request and until when; None when it may go now.

        For a place in a queue, spend what waits in front at its own forecast, on a ledger that is not kept.
        """
        waits = [*self._closed(now, request), *self._short(now, request)]
        return max(waits, key=_urgency, default=None)

    def spend(self, now: datetime, request: Request) -> Spent:
        """Take what the request costs, all of it or, when it must wait, nothing.

        Spend before the CA is asked: orders side by side would otherwise all see the same last
        token. Give it back with `refund` when no certificate came of it.
        """
        settled = self._settled(now, request)
        wait = settled.forecast(now, request)
        if wait is not None:
            return Spent(settled, wait)
        drawn = {
            key: _drawn(settled.buckets.get(key), rule, now)
            for rule, key in settled._draws(request)
            if rule.kind != "failed_authorizations"
        }
        return Spent(settled._with(buckets=drawn), None)

    def refund(self, now: datetime, order: NewOrder, spent_at: datetime) -> Ledger:
        """Give back the certificates that never came; the order itself stays spent, as it is at the CA.

        Less what has refilled since `spent_at`: had nothing been spent, a full bucket could not
        have taken that in, and giving it back would make more of it than the CA has.
        """
        back = {}
        for rule, key in self._draws(order):
            unfilled = rule.interval - (now - spent_at)
            bucket = self._bucket(key, now)
            if bucket is not None and rule.kind == "certificates" and timedelta(0) < unfilled <= rule.interval:
                back[key] = Bucket(at=now, full_at=bucket.full_at - unfilled)
        return self._with(buckets=back)

    def failed(self, now: datetime, account: str, names: Sequence[str]) -> Ledger:
        """Count failed authorizations, one for each of `names`: facts, whoever is exempt, so there is no asking."""
        spent = {
            key: _drawn_at_most(self._bucket(key, now), rule, now, count)
            for rule in self.rules
            for key, count in _failures(rule, account, names).items()
        }
        return self._with(buckets=spent)

    def refused(self, now: datetime, request: Request, refusal: Refusal) -> Ledger:
        """Learn from a refusal: close what it is about, and bring our count to what the CA must have seen.

        A refusal that names no limit closes the account, for an hour at most: other certificates
        need not run into it one by one, but it may be about something else. One without a time
        lasts until the next token, or a minute.
        """
        if refusal.is_pause and isinstance(request, NewOrder):
            paused = _blamed(request, "failed_authorizations", "name", refusal)
            return self._with(closures={_entry(PAUSED, each): Closure(at=now, until=None) for each in paused})
        if refusal.limit is not None and (subjects := _blamed(request, *refusal.limit, refusal)):
            return self._closed_by_name(now, request, limit_name(*refusal.limit), subjects, refusal.until)
        until = min(max(refusal.until or now + UNTIMED, now), now + _UNNAMED_MAX)
        closure = Closure(at=now, until=until, binds_exempt=True)
        return self._with(closures={_entry(UNNAMED, account_of(request)): closure})

    def resumed(self, account: str, names: Sequence[str]) -> Ledger:
        """Open paused names again: a human has acted, or the CA has validated them since."""
        gone = {_entry(PAUSED, name_within(account, each)) for each in names} & self.closures.keys()
        if not gone:
            return self
        kept = {key: closure for key, closure in self.closures.items() if key not in gone}
        return msgspec.structs.replace(self, closures=kept)

    def swept(self, now: datetime) -> Ledger:
        """Without what says nothing any more: full buckets, closures that are over, buckets without a rule."""
        ours = {_prefix(rule) for rule in self.rules}
        buckets = {
            key: bucket
            for key, bucket in self.buckets.items()
            if key.partition(":")[0] in ours and _bucket_in_time(bucket, now).full_at > now
        }
        closures = {key: each for key, each in self.closures.items() if self._closure(key, now) is not None}
        if len(buckets) == len(self.buckets) and len(closures) == len(self.closures):
            return self
        return msgspec.structs.replace(self, buckets=buckets, closures=closures)

    def budgets(self, now: datetime) -> tuple[Budget, ...]:
        """Every budget that is not full or is closed, the scarcest first; all others are as the rules say."""
        rules = {_prefix(rule): rule for rule in self.rules}
        counted = [
            self._budget(now, rules[prefix], subject)
            for key, bucket in self.buckets.items()
            for prefix, _, subject in [key.partition(":")]
            if prefix in rules and _bucket_in_time(bucket, now).full_at > now
        ]
        shown = {_entry(each.limit, each.subject) for each in counted}
        closed = ((key, self._closure(key, now)) for key in self.closures.keys() - shown)
        refused = [_refused_budget(key, closure) for key, closure in closed if closure is not None]
        return tuple(sorted(counted + refused, key=lambda each: (_share_left(each), each.limit, each.subject)))

    def _budget(self, now: datetime, rule: Rule, subject: str) -> Budget:
        bucket = self._bucket(_key(rule, subject), now)
        full_at = now if bucket is None else bucket.full_at
        left = max(0, (now + rule.interval * rule.amount - full_at) // rule.interval)
        closed = self._closure(_entry(rule.limit, subject), now)
        until = closed.until if closed is not None else None
        if "renewal" not in rule.exempt:
            renewal_at = _latest(_opens_at(bucket, rule, now, reserved=0), until)
        else:
            renewal_at = until if closed is not None and closed.binds_exempt else None
        return Budget(
            limit=rule.limit,
            subject=subject,
            amount=rule.amount,
            window_seconds=rule.window_seconds,
            used=rule.amount - left,
            left=left,
            reserved=rule.reserved,
            refills_at=full_at - rule.interval * (rule.amount - left - 1),
            full_at=full_at,
            new_at=_latest(_opens_at(bucket, rule, now, reserved=rule.reserved), until),
            renewal_at=renewal_at,
        )

    def _short(self, now: datetime, request: Request) -> Iterator[Wait]:
        for rule, key in self._draws(request):
            reserved = rule.reserved if cause_in(request) == "new" else 0
            opens_at = _opens_at(self._bucket(key, now), rule, now, reserved)
            if opens_at is not None:
                yield Wait(limit=rule.limit, subject=_subject_in(key), until=opens_at)

    def _closed(self, now: datetime, request: Request) -> Iterator[Wait]:
        if not self.closures:
            return
        for limit, subject in _watched(request):
            closure = self._closure(_entry(limit, subject), now)
            if closure is not None and (closure.binds_exempt or not self._is_exempt(limit, request)):
                yield Wait(limit=limit, subject=subject, until=closure.until)

    def _closed_by_name(
        self, now: datetime, request: Request, limit: str, subjects: Sequence[str], until: datetime | None
    ) -> Ledger:
        # Where the same is limited over several times we are not told which it was: the shortest, most likely.
        rule = min((rule for rule in self.rules if rule.limit == limit), key=_window, default=None)
        wait = UNTIMED if rule is None else rule.interval
        until = min(max(until or now + wait, now), now + _CLOSED_MAX)
        entries = {_entry(limit, subject) for subject in subjects}
        known = [closure for each in entries if (closure := self._closure(each, now)) is not None]
        binds_exempt = self._is_exempt(limit, request) or any(each.binds_exempt for each in known)
        keys = [] if rule is None else [(_key(rule, subject), rule) for subject in subjects]
        return self._with(
            buckets={key: _drained(self._bucket(key, now), rule, now, until) for key, rule in keys},
            closures=dict.fromkeys(entries, Closure(at=now, until=until, binds_exempt=binds_exempt)),
        )

    def _draws(self, request: Request) -> Iterator[tuple[Rule, str]]:
        """Every bucket that has a say in the request, by key."""
        for rule in self.rules:
            if cause_in(request) not in rule.exempt:
                for subject in subjects_of(request, rule.kind, rule.scope):
                    yield rule, _key(rule, subject)

    def _is_exempt(self, limit: str, request: Request) -> bool:
        rules = [rule for rule in self.rules if rule.limit == limit]
        return bool(rules) and all(cause_in(request) in rule.exempt for rule in rules)

    def _bucket(self, key: str, now: datetime) -> Bucket | None:
        bucket = self.buckets.get(key)
        return None if bucket is None else _bucket_in_time(bucket, now)

    def _closure(self, key: str, now: datetime) -> Closure | None:
        closure = self.closures.get(key)
        if closure is None:
            return None
        closure = _closure_in_time(closure, now)
        return closure if closure.until is None or closure.until > now else None

    def _settled(self, now: datetime, request: Request) -> Ledger:
        """With everything that touches the request moved back, where the clock was set back."""
        keys = {key for _, key in self._draws(request)} & self.buckets.keys()
        entries = {_entry(*each) for each in _watched(request)} & self.closures.keys() if self.closures else ()
        return self._with(
            buckets={key: _bucket_in_time(self.buckets[key], now) for key in keys},
            closures={key: _closure_in_time(self.closures[key], now) for key in entries},
        )

    def _with(
        self, *, buckets: Mapping[str, Bucket] | None = None, closures: Mapping[str, Closure] | None = None
    ) -> Ledger:
        changed_buckets = {key: each for key, each in (buckets or {}).items() if self.buckets.get(key) != each}
        changed_closures = {key: each for key, each in (closures or {}).items() if self.closures.get(key) != each}
        if not changed_buckets and not changed_closures:
            return self
        return msgspec.structs.replace(
            self,
            buckets={**self.buckets, **changed_buckets},
            closures={**self.closures, **changed_closures},
        )


def _prefix(rule: Rule) -> str:
    """Two rules may limit the same thing over different times."""
    return f"{rule.limit}/{rule.window_seconds}"


def _window(rule: Rule) -> int:
    return rule.window_seconds


def _key(rule: Rule, subject: str) -> str:
    return _entry(_prefix(rule), subject)


def _entry(limit: str, subject: str) -> str:
    return f"{limit}:{subject}"


def _subject_in(key: str) -> str:
    return key.partition(":")[2]


def _opens_at(bucket: Bucket | None, rule: Rule, now: datetime, reserved: int) -> datetime | None:
    """When there is one token more than `reserved`; None when that is now."""
    full_at = now if bucket is None else max(bucket.full_at, now)
    opens_at = full_at - rule.interval * (rule.amount - reserved - 1)
    return opens_at if opens_at > now else None


def _drawn(bucket: Bucket | None, rule: Rule, now: datetime, count: int = 1) -> Bucket:
    full_at = now if bucket is None else max(bucket.full_at, now)
    return Bucket(at=now, full_at=full_at + rule.interval * count)


def _drawn_at_most(bucket: Bucket | None, rule: Rule, now: datetime, count: int) -> Bucket:
    """A CA that goes on letting us fail counts no further than to the bottom."""
    bottom = now + rule.interval * rule.amount
    drawn = _drawn(bucket, rule, now, count)
    if drawn.full_at <= bottom:
        return drawn
    return Bucket(at=now, full_at=bottom if bucket is None else max(bucket.full_at, bottom))


def _drained(bucket: Bucket | None, rule: Rule, now: datetime, until: datetime) -> Bucket:
    """With one token at `until` and not before: what the CA has when it says so."""
    full_at = until + rule.interval * (rule.amount - 1)
    return Bucket(at=now, full_at=full_at if bucket is None else max(bucket.full_at, full_at))


def _bucket_in_time(bucket: Bucket, now: datetime) -> Bucket:
    return bucket if bucket.at <= now else Bucket(at=now, full_at=bucket.full_at - (bucket.at - now))


def _closure_in_time(closure: Closure, now: datetime) -> Closure:
    if closure.at <= now:
        return closure
    until = None if closure.until is None else closure.until - (closure.at - now)
    return msgspec.structs.replace(closure, at=now, until=until)


def _failures(rule: Rule, account: str, names: Sequence[str]) -> dict[str, int]:
    """How often each bucket of the rule is drawn on, by key."""
    if rule.kind != "failed_authorizations":
        return {}
    if rule.scope == "account":
        return {_key(rule, account): len(names)}
    return {_key(rule, name_within(account, each)): 1 for each in names}


def _watched(request: Request) -> Iterator[tuple[str, str]]:
    """Every limit and subject at which a refusal would hold the request."""
    yield UNNAMED, account_of(request)
    for subject in subjects_of(request, "failed_authorizations", "name"):
        yield PAUSED, subject
    for kind, scope in LIMITS:
        for subject in subjects_of(request, kind, scope):
            yield limit_name(kind, scope), subject


def _blamed(request: Request, kind: Kind, scope: Scope, refusal: Refusal) -> tuple[str, ...]:
    """The subjects the CA's text names; all that it can mean when it names none of ours."""
    subjects = subjects_of(request, kind, scope)
    if scope not in ("name", "registered_domain"):
        return subjects
    account = account_of(request)
    named = tuple(each for each in subjects if each.removeprefix(f"{account}/") in refusal.named)
    return named or subjects


def _refused_budget(key: str, closure: Closure) -> Budget:
    limit, _, subject = key.partition(":")
    return Budget(
        limit=limit,
        subject=subject,
        new_at=closure.until,
        renewal_at=closure.until,
        needs_human=closure.until is None,
    )


def _latest(*moments: datetime | None) -> datetime | None:
    return max((each for each in moments if each is not None), default=None)


def _urgency(wait: Wait) -> tuple[bool, float]:
    return (wait.until is None, 0.0 if wait.until is None else wait.until.timestamp())


def _share_left(budget: Budget) -> float:
    if budget.needs_human:
        return -1.0
    return 0.0 if budget.left is None or budget.amount is None else budget.left / budget.amount
