"""Whether the files that a configuration names can be used: asked before a start, not while decoding.

A configuration may be written and checked on a machine where the files are not.
"""

from __future__ import annotations

import importlib.util
import os
import ssl
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from scaivaultd.model.errors import StartupError
from scaivaultd.settings_layers import Mistake
from scaivaultd.settings_locator import dotted
from scaivaultd.settings_policies import policies_in

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from scaivaultd.settings import Settings
    from scaivaultd.settings_layers import Layers
    from scaivaultd.settings_locator import Key

NO_TELEMETRY = "needs the extra `otel`: pip install 'scaivaultd[otel]', or take this setting out"


def check_files(settings: Settings, layers: Layers | None = None) -> list[Mistake]:
    """What is wrong with the files that `settings` points to. Blocks.

    With `layers`, where the settings were read from, the mistakes carry their lines. Looks as the
    user who asks: a check by root says nothing about what the daemon may read.
    """
    if layers is None:
        return [Mistake(file=None, line=None, key=dotted(key), message=what) for key, what in _complaints(settings)]
    return [layers.mistake(key, message) for key, message in _complaints(settings)]


def _complaints(settings: Settings) -> Iterator[tuple[Key, str]]:
    nats, rest = settings.nats, settings.rest
    if rest.tls_certificate_file is not None and rest.tls_key_file is not None:
        yield from _pair(rest.tls_certificate_file, rest.tls_key_file)
    for place, path in enumerate(settings.acme.trust_files):
        yield from _certificates(("acme", "trust_files", place), path)
    if nats.tls_ca_file is not None:
        yield from _certificates(("nats", "tls_ca_file"), nats.tls_ca_file)
    if nats.credentials_file is not None:
        yield from _readable(("nats", "credentials_file"), nats.credentials_file)
    if nats.callout_seed_file is not None:
        yield from _readable(("nats", "callout_seed_file"), nats.callout_seed_file)
    yield from _policies(settings.access.policy_files)
    if nats.server_path is not None:
        yield from _executable(("nats", "server_path"), nats.server_path)
    if settings.tracing.otlp_endpoint is not None and not _has_telemetry():
        yield ("tracing", "otlp_endpoint"), NO_TELEMETRY


def _policies(files: Sequence[Path]) -> Iterator[tuple[Key, str]]:
    sound: list[Path] = []
    for place, path in enumerate(files):
        try:
            policies_in([path])
            policies_in([*sound, path])  # names are unique among all of them
        except StartupError as error:
            for line in str(error).splitlines():
                yield ("access", "policy_files", place), line
        else:
            sound.append(path)


def _pair(certificate: Path, private_key: Path) -> Iterator[tuple[Key, str]]:
    wrong = [
        *_readable(("rest", "tls_certificate_file"), certificate),
        *_readable(("rest", "tls_key_file"), private_key),
    ]
    yield from wrong
    if wrong:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, private_key, password="")
    except (OSError, ValueError):
        yield (
            ("rest", "tls_key_file"),
            f"{private_key} and {certificate} do not belong together, or are not both unencrypted PEM",
        )


def _certificates(key: Key, path: Path) -> Iterator[tuple[Key, str]]:
    if wrong := _unreadable(path):
        yield key, wrong
        return
    try:
        # OpenSSL is whom it must please: the same call reads it when the daemon connects.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=path)
    except ssl.SSLError:
        yield key, f"{path} holds no PEM certificate, or a damaged one"
    except OSError as error:
        yield key, _cannot_read(path, error)


def _readable(key: Key, path: Path) -> Iterator[tuple[Key, str]]:
    if wrong := _unreadable(path):
        yield key, wrong


def _executable(key: Key, path: Path) -> Iterator[tuple[Key, str]]:
    if not path.exists():
        yield key, f"{path} does not exist"
    elif not path.is_file() or not os.access(path, os.X_OK):
        yield key, f"{path} is not a program that this user may run"


def _unreadable(path: Path) -> str | None:
    try:
        # A FIFO of that name would otherwise hold us for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        return _cannot_read(path, error)
    try:
        return None if stat.S_ISREG(os.fstat(descriptor).st_mode) else f"{path} is not a regular file"
    finally:
        os.close(descriptor)


def _cannot_read(path: Path, error: OSError) -> str:
    return f"{path} cannot be read: {error.strerror}"


def _has_telemetry() -> bool:
    try:
        return importlib.util.find_spec("opentelemetry.exporter.otlp.proto.http") is not None
    except ModuleNotFoundError:
        return False
