"""What `scaivaultctl import` shows: tables, what a person should know beside them, and all of it as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scaivaultd.ctl_output import table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from scaivaultd.import_accounts import AccountPlan
    from scaivaultd.import_plan import CertificatePlan
    from scaivaultd.import_store import ForeignStore
    from scaivaultd.import_timers import OldTimer


class Report:
    """What was planned, or what came of it."""

    def __init__(
        self,
        store: ForeignStore,
        is_applied: bool,
        accounts: Sequence[AccountPlan],
        plans: Sequence[CertificatePlan],
        timers: Sequence[OldTimer],
        secrets: Sequence[str],
    ) -> None:
        self._store = store
        self._is_applied = is_applied
        self._accounts = accounts
        self._plans = plans
        self._timers = timers
        self._secrets = secrets

    @property
    def is_partial(self) -> bool:
        """Whether something is left out that was asked for."""
        return any(each.action in ("skip", "failed") for each in self._plans)

    def as_json(self) -> dict[str, Any]:
        """Everything, for programs; no keys."""
        return {
            "client": self._store.kind,
            "folder": str(self._store.folder),
            "applied": self._is_applied,
            "accounts": [
                {
                    "name": each.name,
                    "directory_url": each.directory_url,
                    "id": each.account_id,
                    "action": each.action,
                    "problem": each.problem,
                }
                for each in self._accounts
            ],
            "certificates": [
                {
                    "name": each.name,
                    "action": each.action,
                    "why": each.why,
                    "domains": list(each.domains),
                    "not_after": each.not_after,
                    "challenge_type": each.challenge_type,
                    "dns_provider": each.dns_provider,
                    "certificate_id": each.certificate_id,
                    "notes": list(each.notes),
                }
                for each in self._plans
            ],
            "timers": [{"what": each.what, "disable": each.disable} for each in self._timers],
            "secrets": list(self._secrets),
            "warnings": list(self._store.warnings),
        }

    def lines(self) -> list[str]:
        """The tables: certificates, below them accounts."""
        certificates = table(
            ("CERTIFICATE", "RESULT", "ENDS", "CHALLENGE", "DETAIL"),
            [
                (
                    each.name,
                    each.action,
                    (each.not_after or "-")[:10],
                    each.challenge_type or "-",
                    each.why or " ".join(each.domains),
                )
                for each in self._plans
            ],
        )
        accounts = table(
            ("ACCOUNT", "RESULT", "DETAIL"),
            [
                (each.name or each.ref, each.action, each.problem or each.account_id or each.directory_url)
                for each in self._accounts
            ],
        )
        return [*certificates, *([""] if accounts else []), *accounts]

    def talk(self, *, with_credentials: bool) -> Iterator[str]:
        """What a person should know beside them."""
        for each in self._plans:
            if each.action in ("skip", "failed"):
                yield f"{each.name}: {each.why}"
            for note in each.notes:
                yield f"{each.name}: {note}"
        yield from self._store.warnings
        yield from self._about_credentials(with_credentials=with_credentials)
        yield from self._about_timers()
        if not self._is_applied and any(each.action == "import" for each in self._plans):
            yield "Nothing was changed. Say --apply to take them over."

    def _about_credentials(self, *, with_credentials: bool) -> Iterator[str]:
        if self._secrets:
            done = "Stored" if self._is_applied else "To be stored"
            yield f"{done}, for the settings of DNS providers: {', '.join(self._secrets)}"
        elif self._store.credentials and not with_credentials:
            names = ", ".join(sorted(self._store.credentials))
            yield f"acme.sh keeps credentials of DNS plugins ({names}); --with-credentials stores them as secrets."

    def _about_timers(self) -> Iterator[str]:
        for timer in self._timers:
            yield f"{timer.what} still renews with {self._store.kind}; end that: {timer.disable}"
        if self._is_applied and not self._timers and self._store.kind != "pem":
            yield f"No timer of {self._store.kind} was found on this host; where else it runs, end it."
