"""Every metric there is: declared once, as data, under the name that Prometheus sees.

What happens is counted here, in `REGISTRY`, by whoever does it. What is (how many certificates, since when) is told at
each scrape by the roof, from the same declarations. Several daemons in one process share the counts and nothing else.

Labels are bounded: beyond `VALUES_MAX` values of one label, further ones are counted as `other`. No label has a domain
name but `name` of a managed certificate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from prometheus_client import Metric

PREFIX = "scaivaultd_"
VALUES_MAX = 200
OTHER = "other"

MINUTES = (1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)
SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
MOMENTS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0)

Kind = Literal["counter", "gauge", "histogram"]
Group = Literal["certificates", "issuing", "acme", "dns", "bus", "api", "listeners", "security", "process", "x509"]

REGISTRY = CollectorRegistry()
"""What is counted. Not the library's own registry: that is everybody's in the process."""

# Series of when each counter began would double what is scraped, and no rule needs them.
disable_created_metrics()  # type: ignore[no-untyped-call]  # it has no annotations


class Family(msgspec.Struct, frozen=True, kw_only=True):
    """One metric, whatever its labels say."""

    name: str
    kind: Kind
    help: str
    group: Group
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    def told(self, samples: Iterable[tuple[Sequence[str], float]]) -> Metric:
        """The family with these values of its labels, as they are now."""
        kind = CounterMetricFamily if self.kind == "counter" else GaugeMetricFamily
        metric = kind(self.name, self.help, labels=self.labels)
        for values, number in samples:
            metric.add_metric(values, number)
        return metric

    def text(self, series: Iterable[tuple[str, float]]) -> str:
        """The family of a gauge as it is scraped, in either format, from labels as `labelled` writes them.

        For thousands of series, of which each costs the library ten times as much.
        """
        lines = [f"{self.name}{{{labels}}} {float(number)!r}\n" for labels, number in series]
        return "".join([f"# HELP {self.name} {self.help}\n# TYPE {self.name} {self.kind}\n", *lines])

    def labelled(self, *values: str) -> str:
        """The labels of one series, as they are scraped."""
        return ",".join(f'{name}="{_escaped(value)}"' for name, value in zip(self.labels, values, strict=True))

    def single(self, number: float) -> Metric:
        """The same for a family without labels."""
        return self.told([((), number)])


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


class _Labelled:
    """The values of a family's labels that may have a series, which are only so many."""

    def __init__(self, family: Family) -> None:
        self._seen: dict[str, set[str]] = {name: set() for name in family.labels}

    def bounded(self, labels: dict[str, str]) -> dict[str, str]:
        return {name: self._folded(name, value) for name, value in labels.items()}

    def _folded(self, name: str, value: str) -> str:
        seen = self._seen[name]
        if value not in seen:
            if len(seen) >= VALUES_MAX:
                return OTHER
            seen.add(value)
        return value


class Count:
    """A counter."""

    def __init__(self, family: Family, registry: CollectorRegistry = REGISTRY) -> None:
        self.family = family
        self._labelled = _Labelled(family)
        self._counter = Counter(family.name, family.help, family.labels, registry=registry)

    def labels(self, **labels: str) -> Counter:
        """The series with these labels; asking for it is enough for it to be there, at 0."""
        return self._counter.labels(**self._labelled.bounded(labels))

    def inc(self) -> None:
        """Count one more, in a family without labels."""
        self._counter.inc()


class Durations:
    """A histogram of seconds."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self._labelled = _Labelled(family)
        self._histogram = Histogram(family.name, family.help, family.labels, buckets=family.buckets, registry=REGISTRY)

    def labels(self, **labels: str) -> Histogram:
        """The series with these labels."""
        return self._histogram.labels(**self._labelled.bounded(labels))


class Level:
    """A number that goes up and down, without labels."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self._gauge = Gauge(family.name, family.help, registry=REGISTRY)

    def set(self, number: float) -> None:
        """It is this now."""
        self._gauge.set(number)


_families: list[Family] = []


def _family(
    group: Group, kind: Kind, name: str, text: str, *labels: str, buckets: tuple[float, ...] = (), prefix: str = PREFIX
) -> Family:
    family = Family(name=prefix + name, kind=kind, help=text, group=group, labels=labels, buckets=buckets)
    _families.append(family)
    return family


def _count(group: Group, name: str, text: str, *labels: str) -> Count:
    return Count(_family(group, "counter", name, text, *labels))


def _durations(group: Group, name: str, text: str, *labels: str, buckets: tuple[float, ...]) -> Durations:
    return Durations(_family(group, "histogram", name, text, *labels, buckets=buckets))


def _level(group: Group, name: str, text: str) -> Level:
    return Level(_family(group, "gauge", name, text))


def _told(group: Group, name: str, text: str, *labels: str) -> Family:
    return _family(group, "gauge", name, text, *labels)


_OF_ONE = ("certificate_id", "name", "tenant", "ca")

CERTIFICATES = _told(
    "certificates",
    "certificates",
    "Managed certificates in their current versions: valid, expired or revoked.",
    "status",
)
CERTIFICATE_NOT_AFTER = _told(
    "certificates",
    "certificate_not_after_timestamp_seconds",
    "When the certificate ends. Revoked certificates have none of these series.",
    *_OF_ONE,
)
CERTIFICATE_NOT_BEFORE = _told(
    "certificates", "certificate_not_before_timestamp_seconds", "When the certificate began.", *_OF_ONE
)
CERTIFICATE_RENEWAL_DUE = _told(
    "certificates",
    "certificate_renewal_due_timestamp_seconds",
    "When it is, or was, to be renewed, whatever was tried since; absent where it is never renewed by itself.",
    *_OF_ONE,
)
CERTIFICATE_RENEWAL_FAILURES = _told(
    "certificates", "certificate_renewal_failures", "Failures to renew it in a row; 0 when all is well.", *_OF_ONE
)

ORDERS = _told("issuing", "orders", "Orders under way, by their state.", "status")
RENEWAL_QUEUE_LENGTH = _told(
    "issuing", "renewal_queue_length", "Certificates whose renewal is due and has not ended, under way or waiting."
)
ISSUANCES = _count(
    "issuing",
    "issuances_total",
    "Orders that have ended. result is issued, or the error code; kind is new or renewal.",
    "ca",
    "challenge",
    "kind",
    "result",
)
ISSUANCE_DURATION = _durations(
    "issuing",
    "issuance_duration_seconds",
    "From the request to the certificate.",
    "ca",
    "challenge",
    buckets=MINUTES,
)
CHALLENGES = _count(
    "issuing",
    "challenges_total",
    "Challenges as they ended: valid or invalid. provider is the type of the DNS provider, or the solver's name.",
    "type",
    "provider",
    "result",
)

ACME_REQUESTS = _count(
    "acme",
    "acme_requests_total",
    "Requests to CAs. code is the HTTP status, or none where no answer came.",
    "ca",
    "resource",
    "code",
)
ACME_REQUEST_DURATION = _durations(
    "acme", "acme_request_duration_seconds", "How long CAs take to answer.", "ca", "resource", buckets=SECONDS
)
ACME_RATE_LIMITED = _count(
    "acme",
    "acme_rate_limited_total",
    "Orders held back by a rate limit: refused by the CA (origin ca), or not sent since it would be (origin local).",
    "ca",
    "origin",
)
BUDGET_REMAINING = _told(
    "acme",
    "rate_limit_budget_remaining_ratio",
    "What is left of a rate limit, from 1 to 0: the scarcest of all that it counts, such as domains.",
    "ca",
    "limit",
)

DNS_API_REQUESTS = _count(
    "dns",
    "dns_api_requests_total",
    "Calls of DNS providers, by provider type. result is ok, or what kind of failure it was.",
    "provider",
    "operation",
    "result",
)
DNS_API_REQUEST_DURATION = _durations(
    "dns",
    "dns_api_request_duration_seconds",
    "How long calls of DNS providers take, their retries included.",
    "provider",
    "operation",
    buckets=SECONDS,
)
DNS_PROPAGATION_DURATION = _durations(
    "dns",
    "dns_propagation_duration_seconds",
    "From a TXT value's write to its being seen.",
    "provider",
    buckets=MINUTES,
)

NATS_CONNECTED = _told("bus", "nats_connected", "Whether the NATS server is connected.")
NATS_RECONNECTS = _count("bus", "nats_reconnects_total", "How often the connection came back.")
EVENTS_PUBLISHED = _count("bus", "events_published_total", "Events that the stream has acknowledged.", "type")
EVENTS_PENDING = _told("bus", "events_pending", "Events that the stream has not got yet.")
EVENTS_OLDEST_PENDING = _told(
    "bus", "events_oldest_pending_seconds", "How long the oldest of them waits; 0 when none does."
)

REQUESTS = _count(
    "api",
    "requests_total",
    "Requests of callers. operation is the command; code is ok, or the error code.",
    "transport",
    "operation",
    "code",
)
REQUEST_DURATION = _durations(
    "api",
    "request_duration_seconds",
    "From a request to its answer, what it asked to wait included.",
    "transport",
    "operation",
    buckets=SECONDS,
)

LISTENER_CONNECTIONS = _told("listeners", "listener_connections", "Connections now.", "listener")
_LISTENER_REJECTED = "Connections that got no answer, or only that they are none."
LISTENER_REJECTED = _family("listeners", "counter", "listener_rejected_total", _LISTENER_REJECTED, "listener", "reason")

AUTH_FAILURES = _count(
    "security", "auth_failures_total", "Requests and logins of nobody that is known.", "transport", "reason"
)
AUTHZ_DENIALS = _count(
    "security", "authz_denials_total", "Requests that no policy allows; operation is the permission.", "operation"
)
SECRET_READS = _count(
    "security",
    "secret_reads_total",
    "Reads of secrets where they are kept, what was remembered not counted. result is ok or not_found.",
    "backend",
    "result",
)
AUDIT_WRITE_FAILURES = _count("security", "audit_write_failures_total", "Writes of the audit log that failed.")
SEALED = _told("security", "sealed", "Whether it has no master key, and works on nothing.")
MASTER_KEY_AGE = _told("security", "master_key_age_seconds", "Since when this master key is in use.")

BUILD_INFO = _told("process", "build_info", "Always 1; the labels tell what runs.", "version", "python")
LEADER = _told("process", "leader", "Whether this one does the work: of all daemons with one store, one does.")
EVENT_LOOP_LAG = _told(
    "process", "event_loop_lag_seconds", "The longest time in the last minute for which nothing else could go on."
)
PLUGIN_ERRORS = _count(
    "process", "plugin_errors_total", "Faults of plugins: exceptions that no contract names.", "plugin", "hook"
)
CONFIG_LAST_RELOAD_SUCCESSFUL = _level(
    "process", "config_last_reload_successful", "Whether the configuration could be used when it was last read."
)
CONFIG_LAST_RELOAD_SUCCESS = _level(
    "process", "config_last_reload_success_timestamp_seconds", "When the configuration in use was read."
)
STORE_SIZE = _told("process", "store_size_bytes", "The store's files, what is still in its log included.")
STORE_OPERATION_DURATION = _durations(
    "process",
    "store_operation_duration_seconds",
    "How long the store takes: commits until they are on stable storage, reads that were not at hand.",
    "operation",
    buckets=MOMENTS,
)

_OF_X509 = ("subject_CN", "issuer_CN", "serial_number", "certificate_id")

X509_NOT_AFTER = _family(
    "x509", "gauge", "x509_cert_not_after", "With compat_x509: when the certificate ends.", *_OF_X509, prefix=""
)
X509_NOT_BEFORE = _family(
    "x509", "gauge", "x509_cert_not_before", "With compat_x509: when the certificate began.", *_OF_X509, prefix=""
)
X509_EXPIRED = _family(
    "x509", "gauge", "x509_cert_expired", "With compat_x509: 1 once it has ended.", *_OF_X509, prefix=""
)

FAMILIES: tuple[Family, ...] = tuple(_families)
"""All of them, in the order of the reference."""
