"""The configuration file: what may stand in it, and reading it.

What is static stands in the file (where to listen, which NATS, which secrets); accounts, orders
and certificates live in the store. The text of each `Meta` is the reference documentation.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, inspect

from scaivaultd.acme.limit_rules import Rule
from scaivaultd.settings_check import Finding, findings, options_of
from scaivaultd.settings_layers import Layers, SettingsError
from scaivaultd.settings_values import (
    HostPort,
    HttpsUrl,
    HttpUrl,
    Label,
    ListenAddress,
    MasterKeySource,
    NatsUrl,
    Origin,
    Resolver,
    RestPlace,
    SecretPrefix,
    SubjectRoot,
    ZoneName,
    read_value,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from scaivaultd.settings_locator import Key

_Section = TypeVar("_Section", bound=msgspec.Struct)

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["auto", "journal", "json", "console"]
Fallback = Literal["404", "redirect", "proxy"]
CheckMode = Literal["off", "warn", "block"]
Identity = Literal["auth_callout", "subject_token", "account_import", "trusted"]
KeyReplies = Literal["own_inbox", "any"]


class IngressSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One subject root at which requests are taken, and how their senders are known there."""

    root: Annotated[SubjectRoot, Meta(description="The subject below which requests are answered; unique.")]
    identity: Annotated[
        Identity,
        Meta(
            description="How a sender is known. auth_callout: it logs in with its API token, and asks below "
            "ROOT.as.TOKEN_ID. subject_token: the operator lets each user publish below ROOT.as.USER only. "
            "account_import: it comes from another NATS account, which the header Nats-Request-Info names. trusted: "
            "whoever can reach the root may do everything but read keys."
        ),
    ]
    account: Annotated[
        Label | None,
        Meta(description="The NATS account of the users: what stands before / in nats:ACCOUNT/USER. Unset: `$G`."),
    ] = None
    key_replies: Annotated[
        KeyReplies,
        Meta(
            description="Where private keys may go in plain: own_inbox is the sender's own _INBOX_ prefix, any is any "
            "reply subject, which others on the bus may be able to read."
        ),
    ] = "own_inbox"


class NatsSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The NATS servers that carry requests and events."""

    servers: Annotated[
        tuple[NatsUrl, ...],
        Meta(
            description="Servers to connect to, as nats://HOST:PORT or tls://HOST:PORT; any that answers will do. "
            "Empty: the daemon runs a nats-server of its own on loopback."
        ),
    ] = ()
    credentials_file: Annotated[
        Path | None,
        Meta(description="Credentials (.creds) that the daemon logs in with. Unset: those in the URLs, or none."),
    ] = None
    tls_ca_file: Annotated[
        Path | None,
        Meta(description="PEM certificates that vouch for the servers. Unset: those the system trusts."),
    ] = None
    server_path: Annotated[
        Path | None,
        Meta(
            description="The nats-server binary to run when `servers` is empty. Unset: that of the `embedded` extra, "
            "else that of PATH."
        ),
    ] = None
    subject_root: Annotated[
        SubjectRoot, Meta(description="The subject below which requests are answered, as in ROOT.pki.acme.issue.")
    ] = SubjectRoot("scaivault.v1")
    events_root: Annotated[
        SubjectRoot,
        Meta(
            description="The subject below which events are published, as in ROOT.certificate.issued.ID; neither root "
            "may lie below the other."
        ),
    ] = SubjectRoot("scaivault.events")
    ingress: Annotated[
        tuple[IngressSettings, ...],
        Meta(
            description="Where requests are taken, each root with its own way to know who asks. Empty: `subject_root`, "
            "with auth_callout at a server of our own and subject_token at others."
        ),
    ] = ()
    callout_seed_file: Annotated[
        Path | None,
        Meta(
            description="The nkey seed of the account that signs logins (`auth_callout.issuer` in nats-server's "
            "configuration), for auth_callout at servers that are not our own."
        ),
    ] = None


class Http01Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The listener that answers http-01 challenges."""

    listen: Annotated[
        tuple[ListenAddress, ...],
        Meta(
            description="Addresses to listen on; CAs ask on port 80, so another port needs a forwarder in front. "
            "Empty: no listener."
        ),
    ] = (ListenAddress("0.0.0.0:80"), ListenAddress("[::]:80"))
    fallback: Annotated[
        Fallback,
        Meta(
            description="What becomes of requests that are not for a challenge of ours: 404 refuses them, redirect "
            "sends them to https on the same host, proxy joins them with `upstream`."
        ),
    ] = "404"
    upstream: Annotated[
        HostPort | None,
        Meta(
            description="The web server, as host:port, that gets those requests unchanged with fallback proxy, and "
            "only then. It sees them come from the daemon's address."
        ),
    ] = None


class TlsAlpn01Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The listener that answers tls-alpn-01 challenges."""

    listen: Annotated[
        tuple[ListenAddress, ...],
        Meta(
            description="Addresses to listen on; CAs ask on port 443, so another port needs a forwarder in front. "
            "Empty: no listener. Of the default, what is taken or forbidden is left out with a warning."
        ),
    ] = (ListenAddress("0.0.0.0:443"), ListenAddress("[::]:443"))
    upstream: Annotated[
        HostPort | None,
        Meta(
            description="The TLS server, as host:port, that gets every connection unchanged that is not for a "
            "challenge of ours. It sees them come from the daemon's address. Unset: they are closed."
        ),
    ] = None


class RestSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The commands over HTTP. A UNIX socket is always there."""

    listen: Annotated[
        tuple[RestPlace, ...],
        Meta(
            description="Addresses (address:port), and at most one path of a UNIX socket (absolute). Without a path: "
            "api.sock in $RUNTIME_DIRECTORY, or else in `state_dir`. Addresses other than loopback need TLS."
        ),
    ] = ()
    tls_certificate_file: Annotated[
        Path | None, Meta(description="The certificate and its chain for the addresses (PEM); read again on SIGHUP.")
    ] = None
    tls_key_file: Annotated[Path | None, Meta(description="Its private key (PEM).")] = None
    tls_managed: Annotated[
        ZoneName | None,
        Meta(
            description="Instead of files: a name whose certificate this daemon itself keeps; each new version is used "
            "at once. The addresses refuse TLS until there is one."
        ),
    ] = None
    origins: Annotated[
        tuple[Origin, ...],
        Meta(description="Web origins whose pages may use the API (CORS), as https://HOST. Empty: none."),
    ] = ()


class AccessSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who may do what, beside the policies written by request."""

    policy_files: Annotated[
        tuple[Path, ...],
        Meta(
            description="TOML files with [[policy]] tables, read at start and on SIGHUP; see "
            "docs/how-to/give-access.md."
        ),
    ] = ()
    admin_group: Annotated[
        Label | None,
        Meta(
            description="A group of this host whose members are administrators over the UNIX socket, beside root and "
            "the daemon's own user; the socket is theirs too. A group that does not exist is left out with a warning."
        ),
    ] = Label("scaivault-admin")


class AuditSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The audit log, in `audit` below `state_dir`."""

    file_mib: Annotated[int, Meta(ge=1, le=1024, description="A file ends at about this size; the next goes on.")] = 64
    keep_files: Annotated[
        int, Meta(ge=0, le=100_000, description="How many ended files are kept; 0: all. Older ones are deleted.")
    ] = 0


class AcmeSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What holds for every CA."""

    trust_files: Annotated[
        tuple[Path, ...],
        Meta(description="PEM certificates that may vouch for a CA's directory, beside those the system trusts."),
    ] = ()
    private_directories: Annotated[
        tuple[HostPort, ...],
        Meta(
            description="CAs, as host:port, that may be at a private, loopback or link-local address. All others are "
            "refused there, so that callers cannot send the daemon into the inner network."
        ),
    ] = ()
    further_hosts: Annotated[
        tuple[HostPort, ...],
        Meta(
            description="Hosts, as host:port, at which a CA's URLs may be although its directory is elsewhere. All "
            "others are refused."
        ),
    ] = ()
    orders_per_ca: Annotated[
        int, Meta(ge=1, le=1000, description="How many orders are worked on at one CA at the same time.")
    ] = 16
    order_timeout_seconds: Annotated[
        float,
        Meta(ge=10, le=2_592_000, description="How long an order may take before it has failed, retries included."),
    ] = 3600.0
    zerossl_api: Annotated[
        HttpsUrl,
        Meta(description="Where external account bindings for ZeroSSL are fetched; for tests and proxies."),
    ] = HttpsUrl("https://api.zerossl.com")


class RateLimitSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The rate limits of a CA that publishes none we know, or has agreed to others."""

    directory_url: Annotated[HttpsUrl, Meta(description="The CA's directory, exactly as accounts have it; unique.")]
    rules: Annotated[
        tuple[Rule, ...],
        Meta(description="All its limits, in place of those we know; see docs/how-to/rate-limits.md. Empty: none."),
    ] = ()


class PreflightSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is checked before a CA is asked. `warn` writes what it finds into the order, `block` ends the order."""

    caa: Annotated[
        CheckMode, Meta(description="Whether the names' CAA records (RFC 8659, RFC 8657) permit this CA and account.")
    ] = "warn"
    delegation: Annotated[
        CheckMode, Meta(description="Whether the names lie in zones that are delegated to servers which serve them.")
    ] = "warn"
    reachability: Annotated[
        CheckMode,
        Meta(
            description="Whether our own http-01 or tls-alpn-01 answer is seen at the names' addresses from here. Off "
            "unless this host reaches itself by its public names."
        ),
    ] = "off"
    timeout_seconds: Annotated[
        float, Meta(ge=0.1, le=60, description="How long the checks of one order may take; what is left is skipped.")
    ] = 5.0
    http01_port: Annotated[int, Meta(ge=1, le=65535, description="Where the CA looks for http-01.")] = 80
    tlsalpn01_port: Annotated[int, Meta(ge=1, le=65535, description="Where the CA looks for tls-alpn-01.")] = 443


class DnsSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How dns-01 values are seen to have reached the nameservers."""

    resolvers: Annotated[
        tuple[Resolver, ...],
        Meta(
            description="Recursive nameservers to ask, as address or address:port (53 unless given). "
            "Empty: those of the system."
        ),
    ] = ()
    authoritative_port: Annotated[
        int, Meta(ge=1, le=65535, description="The port at which authoritative nameservers are asked.")
    ] = 53
    types_by_request: Annotated[
        tuple[Label, ...],
        Meta(
            description="Types of DNS providers that callers may configure although they run programs or call hosts of "
            "their own choice: exec, httpreq, lexicon."
        ),
    ] = ()
    private_apis: Annotated[
        tuple[HostPort, ...],
        Meta(
            description="APIs of DNS services, as host:port, that may be at a private, loopback or link-local address "
            "although callers have configured the provider. All others are refused there; providers of this file are "
            "free."
        ),
    ] = ()


class SecretsSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the master key is, and which secrets callers may name."""

    master_key: Annotated[
        MasterKeySource | None,
        Meta(
            description="Where the key is that seals all stored keys: file:PATH, credential:NAME (passed by systemd), "
            "env:NAME, or passphrase (the daemon starts sealed and waits for `scaivaultctl unseal`). Unset: "
            "`master.key` in the state directory, made with a warning while the store is empty."
        ),
    ] = None
    allow: Annotated[
        tuple[SecretPrefix, ...],
        Meta(
            description="How references to secrets may begin that callers name: cred: (passed by systemd), "
            "file:/DIRECTORY/ or env:PREFIX. Callers cannot use any other."
        ),
    ] = (SecretPrefix("cred:"),)
    backends: Annotated[
        dict[str, dict[str, Any]],
        Meta(
            description="Settings of secret backends that plugins bring, each in a table named after its scheme, such "
            "as [secrets.backends.vault]."
        ),
    ] = {}


class LogSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the daemon says on standard error."""

    level: Annotated[LogLevel, Meta(description="The least important messages to write.")] = "info"
    format: Annotated[
        LogFormat,
        Meta(
            description="How lines look; auto is journal where standard error is systemd's journal, console on a "
            "terminal, and json elsewhere."
        ),
    ] = "auto"


class MetricsSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Metrics for Prometheus, at `/metrics`. The UNIX socket always has them, REST addresses with a token."""

    listen: Annotated[
        tuple[ListenAddress, ...],
        Meta(
            description="Addresses that serve the metrics, and nothing else, to everybody without a token; loopback "
            "only, such as 127.0.0.1:9797. Empty: none."
        ),
    ] = ()
    max_certificates: Annotated[
        int,
        Meta(
            ge=0,
            le=1_000_000,
            description="With more certificates than this there are no series of single ones, only of all.",
        ),
    ] = 5000
    compat_x509: Annotated[
        bool, Meta(description="Tell x509_cert_not_after and its kin too, for dashboards of x509-certificate-exporter.")
    ] = False


class TracingSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Traces (OpenTelemetry); needs the extra `otel`. The ids of a caller's trace are in logs and answers without."""

    otlp_endpoint: Annotated[
        HttpUrl | None,
        Meta(description="Where spans go by OTLP over HTTP, as https://HOST:4318/v1/traces. Unset: nowhere."),
    ] = None
    sample_ratio: Annotated[
        float, Meta(ge=0, le=1, description="How many of the traces that begin here are kept; others as their caller.")
    ] = 1.0


class DeploymentSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The hosts that use certificates, as they tell of themselves."""

    overdue_seconds: Annotated[
        float,
        Meta(
            ge=1,
            le=31_536_000,
            description="How long after a new version a host may still use an earlier one before "
            "`certificate.deploy_overdue` tells of it.",
        ),
    ] = 3600.0


class EventSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The events that the daemon keeps for those who were away, beside the stream on NATS."""

    keep_days: Annotated[int, Meta(ge=1, le=3650, description="How long an event is kept.")] = 30
    keep_count: Annotated[int, Meta(ge=1000, le=100_000_000, description="How many at most.")] = 200_000


class DnsProviderSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A DNS provider that the administrator configures here; most are configured by request instead.

    Callers can use and test it, not change it. Types that run programs or call hosts of their own choice
    (`exec`, `httpreq`) can only be configured here.
    """

    name: Annotated[Label, Meta(description="What requests call it in `dns_provider`; unique.")]
    type: Annotated[Label, Meta(description="The kind of provider; see docs/providers.")]
    zones: Annotated[
        tuple[ZoneName, ...],
        Meta(description="The zones it serves. Empty: the provider is asked which it has."),
    ] = ()
    config: Annotated[
        dict[str, Any],
        Meta(description="Settings of its kind. Secrets are named by reference, as in requests."),
    ] = {}


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole configuration. Its repr holds no password."""

    state_dir: Annotated[
        Path,
        Meta(description="The directory for everything that must outlive a restart, such as /var/lib/scaivaultd."),
    ]
    solvers: Annotated[
        dict[str, dict[str, Any]],
        Meta(
            description="Settings of challenge solvers that plugins bring, each in a table named after it, such as "
            "[solvers.upload]."
        ),
    ] = {}
    nats: NatsSettings = NatsSettings()
    rest: RestSettings = RestSettings()
    access: AccessSettings = AccessSettings()
    audit: AuditSettings = AuditSettings()
    http01: Http01Settings = Http01Settings()
    tlsalpn01: TlsAlpn01Settings = TlsAlpn01Settings()
    acme: AcmeSettings = AcmeSettings()
    dns: DnsSettings = DnsSettings()
    preflight: PreflightSettings = PreflightSettings()
    secrets: SecretsSettings = SecretsSettings()
    log: LogSettings = LogSettings()
    metrics: MetricsSettings = MetricsSettings()
    tracing: TracingSettings = TracingSettings()
    deployments: DeploymentSettings = DeploymentSettings()
    events: EventSettings = EventSettings()
    dns_provider: Annotated[
        tuple[DnsProviderSettings, ...],
        Meta(description="DNS providers of the administrator, each in a table of its own."),
    ] = ()
    rate_limits: Annotated[
        tuple[RateLimitSettings, ...],
        Meta(description="Rate limits of CAs, each in a table of its own."),
    ] = ()


def load(path: Path, environment: Mapping[str, str] | None = None) -> Settings:
    """Read a configuration file, the drop-ins beside it, and what `environment` says. Blocks.

    What its paths point to is judged by `check_files`.

    Raises:
        SettingsError: with every mistake, in the order of the layers and their lines.
    """
    return settings_of(layers_of(path, environment))


def layers_of(path: Path, environment: Mapping[str, str] | None = None) -> Layers:
    """The layers as they are read, not judged yet. Blocks.

    Raises:
        SettingsError: a file cannot be read, or is no TOML.
    """
    return Layers(path, environment, is_text=_is_text)


def settings_of(layers: Layers) -> Settings:
    """What the layers say together.

    Raises:
        SettingsError: with every mistake.
    """
    found = list(findings(Settings, layers.table))
    found += _contradictions(layers.table, found)
    if found:
        raise SettingsError(layers.in_order([layers.mistake(each.key, each.message) for each in found]))
    return msgspec.convert(layers.table, Settings, dec_hook=read_value)


def _is_text(key: Key) -> bool:
    """Whether a text is wanted at a key; nobody knows of keys that there are not."""
    struct: type[msgspec.Struct] | None = Settings
    kind: inspect.Type | None = None
    for part in key:
        options = {} if struct is None else {each.name: each for each in options_of(struct)}
        kind = options[str(part)].kind if part in options else None
        struct = kind.cls if isinstance(kind, inspect.StructType) else None
    return isinstance(kind, inspect.CustomType | inspect.LiteralType)


def _contradictions(table: Mapping[str, object], found: Sequence[Finding]) -> Iterator[Finding]:
    """Mistakes that no value shows by itself. Values that are mistakes already are not compared."""
    faulty = {each.key[:2] for each in found}
    sound = {
        name: {key: value for key, value in section.items() if (name, key) not in faulty}
        for name, section in table.items()
        if isinstance(section, dict)
    }
    yield from _repeated(table, "dns_provider", "name")
    yield from _repeated(table, "rate_limits", "directory_url")
    yield from _rules_for_the_same(table.get("rate_limits"), faulty)
    if faulty.isdisjoint({("nats", "subject_root"), ("nats", "events_root")}):
        yield from _overlapping_roots(_section(NatsSettings, sound, "nats"), sound)
    if not any(table == "nats" for table, *_ in faulty):
        yield from _unclear_ingress(_section(NatsSettings, sound, "nats"))
    if faulty.isdisjoint({("http01", "listen"), ("tlsalpn01", "listen")}):
        both = _section(Http01Settings, sound, "http01"), _section(TlsAlpn01Settings, sound, "tlsalpn01")
        yield from _shared_addresses(*both)
        yield from _each_others_upstream(*both)
    if not any(table == "http01" for table, *_ in faulty):
        http01 = _section(Http01Settings, sound, "http01")
        yield from _upstream_or_not(http01)
        yield from _own_upstream("http01", http01)
    if not any(table == "rest" for table, *_ in faulty):
        rest = _section(RestSettings, sound, "rest")
        yield from _half_of_tls(rest)
        yield from _places_of_rest(rest)
        if faulty.isdisjoint({("http01", "listen"), ("tlsalpn01", "listen")}):
            yield from _places_taken(rest, sound)
    if not any(table == "metrics" for table, *_ in faulty):
        yield from _metrics_for_others(_section(MetricsSettings, sound, "metrics"))
    if not any(table == "tlsalpn01" for table, *_ in faulty):
        yield from _own_upstream("tlsalpn01", _section(TlsAlpn01Settings, sound, "tlsalpn01"))


def _repeated(table: Mapping[str, object], name: str, key: str) -> Iterator[Finding]:
    seen: dict[object, int] = {}
    for place, each in enumerate(_tables(table.get(name))):
        value = each.get(key)
        if isinstance(value, str) and seen.setdefault(value, place) != place:
            yield Finding((name, place, key), f"is taken already, by {name}[{seen[value]}]")


def _rules_for_the_same(tables: object, faulty: Collection[Key]) -> Iterator[Finding]:
    # They would share a budget, and mistake each other's count for their own.
    for place, limits in enumerate(_tables(tables)):
        if ("rate_limits", place) in faulty:
            continue
        seen: dict[object, int] = {}
        for number, rule in enumerate(_tables(limits.get("rules"))):
            what = (rule["kind"], rule["scope"], rule["window_seconds"])
            if seen.setdefault(what, number) != number:
                yield Finding(
                    ("rate_limits", place, "rules", number),
                    f"limits the same as rules[{seen[what]}] over the same time: keep one of them",
                )


def _tables(value: object) -> Sequence[Mapping[str, object]]:
    """An array of tables; what else stands there is a mistake that is known already."""
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _section(struct: type[_Section], tables: Mapping[str, Mapping[str, object]], name: str) -> _Section:
    return msgspec.convert(tables.get(name, {}), struct, dec_hook=read_value)


def _overlapping_roots(nats: NatsSettings, tables: Mapping[str, Mapping[str, object]]) -> Iterator[Finding]:
    # Our own events would be answered as requests.
    if nats.events_root.overlaps(nats.subject_root):
        written = "events_root" if "events_root" in tables["nats"] else "subject_root"
        yield Finding(
            ("nats", written),
            f"events_root {nats.events_root!r} and subject_root {nats.subject_root!r} overlap: neither may be, or lie "
            "below, the other",
        )


def _unclear_ingress(nats: NatsSettings) -> Iterator[Finding]:
    for place, each in enumerate(nats.ingress):
        key: Key = ("nats", "ingress", place, "root")
        for other in nats.ingress[:place]:
            if each.root.overlaps(other.root):
                yield Finding(key, f"{each.root!r} and {other.root!r} overlap: a request would be taken twice")
        if each.root.overlaps(nats.events_root):
            yield Finding(key, f"{each.root!r} and events_root {nats.events_root!r} overlap")
        if each.identity == "auth_callout" and nats.servers and nats.callout_seed_file is None:
            yield Finding(
                ("nats", "ingress", place, "identity"),
                "auth_callout at servers that are not our own needs callout_seed_file, the key that signs logins",
            )
    if len([each for each in nats.ingress if each.identity == "auth_callout"]) > 1:
        yield Finding(("nats", "ingress"), "only one root can have auth_callout")


def _shared_addresses(http01: Http01Settings, tlsalpn01: TlsAlpn01Settings) -> Iterator[Finding]:
    for place, address in enumerate(tlsalpn01.listen):
        # Every socket on port 0 gets a port of its own.
        if address.port and address in http01.listen:
            yield Finding(("tlsalpn01", "listen", place), f"{address} is in http01.listen too")


def _each_others_upstream(http01: Http01Settings, tlsalpn01: TlsAlpn01Settings) -> Iterator[Finding]:
    # What is no challenge would go round, from one to the other, until no connection is left.
    for name, one, other in (("http01", http01, tlsalpn01), ("tlsalpn01", tlsalpn01, http01)):
        if one.upstream is not None and any(each.is_reached_by(one.upstream) for each in other.listen):
            yield Finding((name, "upstream"), f"{one.upstream} is where the daemon's other listener listens")


def _half_of_tls(rest: RestSettings) -> Iterator[Finding]:
    files = {"tls_certificate_file": rest.tls_certificate_file, "tls_key_file": rest.tls_key_file}
    there = [name for name, path in files.items() if path is not None]
    if len(there) == 1:
        [missing] = files.keys() - there
        yield Finding(("rest", there[0]), f"needs {missing} beside it")
    if there and rest.tls_managed is not None:
        yield Finding(("rest", "tls_managed"), f"goes without {' and '.join(there)}: keep one of the two ways")


def _places_of_rest(rest: RestSettings) -> Iterator[Finding]:
    has_tls = rest.tls_certificate_file is not None or rest.tls_managed is not None
    paths = [each for each in rest.listen if each.is_path]
    for place, each in enumerate(rest.listen):
        if each.is_path and each != paths[0]:
            yield Finding(("rest", "listen", place), f"there is one UNIX socket, and {paths[0]} is named already")
        # Tokens and private keys would go in the clear.
        if not each.is_path and not has_tls and not ipaddress.ip_address(_host(each)).is_loopback:
            yield Finding(
                ("rest", "listen", place),
                f"{each} is not on loopback and needs TLS: tls_certificate_file and tls_key_file, or tls_managed",
            )


def _metrics_for_others(metrics: MetricsSettings) -> Iterator[Finding]:
    for place, each in enumerate(metrics.listen):
        if not ipaddress.ip_address(_host(each)).is_loopback:
            yield Finding(
                ("metrics", "listen", place),
                f"{each} is not on loopback, and nobody is asked for a token there; use an address of [rest]",
            )


def _places_taken(rest: RestSettings, tables: Mapping[str, Mapping[str, object]]) -> Iterator[Finding]:
    taken = {
        "http01": _section(Http01Settings, tables, "http01").listen,
        "tlsalpn01": _section(TlsAlpn01Settings, tables, "tlsalpn01").listen,
    }
    for place, each in enumerate(rest.listen):
        for name, addresses in taken.items():
            for address in addresses:
                if not each.is_path and _meet(each, address):
                    yield Finding(("rest", "listen", place), f"{each} is taken by {address} in {name}.listen")


def _meet(one: str, other: str) -> bool:
    """Whether two sockets cannot both listen there: [::] takes no IPv4, and every socket on port 0 gets its own."""
    hosts, ports = {_host(one), _host(other)}, {each.rpartition(":")[2] for each in (one, other)}
    same_family = len({":" in each for each in hosts}) == 1
    return len(ports) == 1 and ports != {"0"} and same_family and (len(hosts) == 1 or bool(hosts & {"0.0.0.0", "::"}))  # noqa: S104 - compared


def _host(address: str) -> str:
    return address.rpartition(":")[0].strip("[]")


def _upstream_or_not(http01: Http01Settings) -> Iterator[Finding]:
    if http01.fallback == "proxy" and http01.upstream is None:
        yield Finding(("http01", "fallback"), "'proxy' needs an upstream: the host:port of the web server")
    if http01.fallback != "proxy" and http01.upstream is not None:
        yield Finding(
            ("http01", "upstream"), f"is used with fallback = 'proxy' only, and fallback is {http01.fallback!r}"
        )


def _own_upstream(name: str, listener: Http01Settings | TlsAlpn01Settings) -> Iterator[Finding]:
    # Each connection would be joined with another one to ourselves, until none is left.
    if listener.upstream is not None and any(each.is_reached_by(listener.upstream) for each in listener.listen):
        yield Finding((name, "upstream"), f"{listener.upstream} is where this listener itself listens")
