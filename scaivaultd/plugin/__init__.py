"""Everything a third party's plugin needs, and nothing else of ours.

A plugin is an ordinary package with an entry point in the group `scaivaultd` that names a module
with functions marked `@hookimpl`. The hooks are in `hookspecs`; what they return is described in
`challenge`, `dns` and `secrets`, what they may raise in `errors`, what the host lends them in `context`. The module
says which contract it was written for in `SCAIVAULTD_PLUGIN_API`. `http` is a client for providers with an HTTP API,
`testing` a conformance kit for their tests; both are imported by name only, so that nobody pays for them unasked.
"""

from scaivaultd.model.clock import Clock
from scaivaultd.plugin.challenge import (
    ChallengeResponse,
    ChallengeSolver,
    ClaimingSolver,
    Dns01Records,
    Http01Responses,
    NoSettings,
    SolverContext,
    SolverError,
    SolverKind,
    TlsAlpn01Responses,
)
from scaivaultd.plugin.context import Log, PluginContext
from scaivaultd.plugin.dns import (
    Capabilities,
    Checkable,
    DnsProvider,
    DnsProviderKind,
    Handle,
    ProviderSettings,
    SignalsLive,
    Zone,
    secret_references,
)
from scaivaultd.plugin.errors import (
    Conflict,
    LostAnswer,
    PermanentError,
    ProviderAuthError,
    ProviderError,
    RateLimited,
    TransientError,
    ZoneNotFound,
)
from scaivaultd.plugin.hookspecs import ENTRY_POINT_GROUP, PLUGIN_API, hookimpl
from scaivaultd.plugin.names import candidates, normal_name, relative_name, unquoted
from scaivaultd.plugin.secrets import Secret, SecretBackend, SecretBackendKind, SecretMissing, SecretReader

__all__ = [
    "ENTRY_POINT_GROUP",
    "PLUGIN_API",
    "Capabilities",
    "ChallengeResponse",
    "ChallengeSolver",
    "Checkable",
    "ClaimingSolver",
    "Clock",
    "Conflict",
    "Dns01Records",
    "DnsProvider",
    "DnsProviderKind",
    "Handle",
    "Http01Responses",
    "Log",
    "LostAnswer",
    "NoSettings",
    "PermanentError",
    "PluginContext",
    "ProviderAuthError",
    "ProviderError",
    "ProviderSettings",
    "RateLimited",
    "Secret",
    "SecretBackend",
    "SecretBackendKind",
    "SecretMissing",
    "SecretReader",
    "SignalsLive",
    "SolverContext",
    "SolverError",
    "SolverKind",
    "TlsAlpn01Responses",
    "TransientError",
    "Zone",
    "ZoneNotFound",
    "candidates",
    "hookimpl",
    "normal_name",
    "relative_name",
    "secret_references",
    "unquoted",
]
