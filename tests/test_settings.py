"""The configuration file: what is read from it, and what people are told when it is wrong."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
from msgspec import inspect

from scaivaultd.acme.limit_rules import Rule
from scaivaultd.model.errors import StartupError
from scaivaultd.settings import PreflightSettings, Settings, load
from scaivaultd.settings_check import Option, bounds_of, nearest, options_of
from scaivaultd.settings_layers import Mistake, SettingsError
from scaivaultd.settings_reference import reference_markdown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parent.parent
ANNOTATED = ROOT / "config" / "scaivaultd.toml"
POLICIES = ROOT / "config" / "examples" / "policies.toml"
EXAMPLES = sorted(set((ROOT / "config" / "examples").glob("*.toml")) - {POLICIES})
REFERENCE = ROOT / "docs" / "reference" / "configuration.md"
MISSING = "is missing: The directory for everything that must outlive a restart, such as /var/lib/scaivaultd."
OVERLAP = "events_root {!r} and subject_root {!r} overlap: neither may be, or lie below, the other"
KINDS = "certificates, failed_authorizations, new_accounts, new_orders"
STATE_DIR = 'state_dir = "/var/lib/scaivaultd"\n'


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str | bytes], Path]:
    """Put a configuration into a file of its own."""

    def write(content: str | bytes) -> Path:
        path = tmp_path / "scaivaultd.toml"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def mistakes_of(path: Path) -> list[tuple[int | None, str, str]]:
    """What is wrong with a file, as line, key and message."""
    with pytest.raises(SettingsError) as caught:
        load(path)
    return [(each.line, each.key, each.message) for each in caught.value.mistakes]


def test_state_dir_alone_is_a_configuration(write: Callable[[str], Path]) -> None:
    """A first start needs one line; everything else has a default that works on a public host."""
    settings = load(write(STATE_DIR))
    assert settings == Settings(state_dir=Path("/var/lib/scaivaultd"))
    assert settings.nats.servers == ()
    assert settings.nats.subject_root == "scaivault.v1"
    assert settings.nats.events_root == "scaivault.events"
    assert settings.http01.listen == ("0.0.0.0:80", "[::]:80")
    assert settings.tlsalpn01.listen == ("0.0.0.0:443", "[::]:443")
    assert (settings.acme.orders_per_ca, settings.acme.order_timeout_seconds) == (16, 3600.0)
    assert settings.dns.authoritative_port == 53
    assert settings.secrets.master_key is None
    assert settings.secrets.allow == ("cred:",)
    assert (settings.log.level, settings.log.format) == ("info", "auto")


def test_every_key_arrives_in_its_place(write: Callable[[str], Path]) -> None:
    """A key that is read but put elsewhere would be worse than one that is refused."""
    settings = load(
        write(
            STATE_DIR
            + """
            http01.listen = []
            tlsalpn01 = { listen = ["[0:0::1]:0443", "127.0.0.1:0"] }
            [nats]
            servers = ["nats://one", "tls://user:pass@two:4223"]
            credentials_file = "/a.creds"
            tls_ca_file = "/ca.pem"
            server_path = "/nats-server"
            subject_root = "pki"
            events_root = "pki-events"
            [acme]
            trust_files = ["/root.pem"]
            private_directories = ["CA.internal:8443", "[fd00:0::1]:443"]
            orders_per_ca = 1
            order_timeout_seconds = 10
            zerossl_api = "https://proxy.internal:8443"
            [preflight]
            caa = "block"
            delegation = "off"
            reachability = "warn"
            timeout_seconds = 1
            http01_port = 5002
            tlsalpn01_port = 5001
            [dns]
            resolvers = ["192.0.2.1", "2001:db8::1", "[2001:db8::2]", "192.0.2.1:5353", "[2001:db8::1]:54"]
            authoritative_port = 8053
            [secrets]
            master_key = "credential:master"
            allow = ["file:/run/secrets/", "env:SCAIVAULT_", "cred:eab-"]
            [log]
            level = "debug"
            format = "json"
            [[rate_limits]]
            directory_url = "https://ca.example.org/Directory"
            rules = [
                { kind = "new_orders", scope = "account", amount = 3, window_seconds = 6, exempt = ["renewal", "ari"] },
                { kind = "certificates", scope = "name_set", amount = 5, window_seconds = 9, reserve_percent = 0 },
            ]
            [[rate_limits]]
            directory_url = "https://other.example.org"
            """
        )
    )
    assert settings.http01.listen == ()
    assert settings.tlsalpn01.listen == ("[::1]:443", "127.0.0.1:0")
    assert [each.reveal() for each in settings.nats.servers] == ["nats://one", "tls://user:pass@two:4223"]
    assert settings.nats.credentials_file == Path("/a.creds")
    assert settings.nats.tls_ca_file == Path("/ca.pem")
    assert settings.nats.server_path == Path("/nats-server")
    assert (settings.nats.subject_root, settings.nats.events_root) == ("pki", "pki-events")
    assert settings.acme.trust_files == (Path("/root.pem"),)
    assert settings.acme.private_directories == ("ca.internal:8443", "[fd00::1]:443")
    assert (settings.acme.orders_per_ca, settings.acme.order_timeout_seconds) == (1, 10.0)
    assert settings.acme.zerossl_api == "https://proxy.internal:8443"
    assert settings.preflight == PreflightSettings(
        caa="block", delegation="off", reachability="warn", timeout_seconds=1, http01_port=5002, tlsalpn01_port=5001
    )
    orders, certificates = settings.rate_limits[0].rules
    assert orders == Rule(kind="new_orders", scope="account", amount=3, window_seconds=6, exempt=("renewal", "ari"))
    assert certificates == Rule(kind="certificates", scope="name_set", amount=5, window_seconds=9, reserve_percent=0)
    assert [(each.directory_url, len(each.rules)) for each in settings.rate_limits] == [
        ("https://ca.example.org/Directory", 2),
        ("https://other.example.org", 0),
    ]
    assert settings.dns.resolvers == (
        "192.0.2.1:53",
        "[2001:db8::1]:53",
        "[2001:db8::2]:53",
        "192.0.2.1:5353",
        "[2001:db8::1]:54",
    )
    assert settings.dns.authoritative_port == 8053
    assert settings.secrets.master_key == "credential:master"
    assert settings.secrets.allow == ("file:/run/secrets/", "env:SCAIVAULT_", "cred:eab-")
    assert (settings.log.level, settings.log.format) == ("debug", "json")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [(None, "state_dir", MISSING)]),
        ('state_dir = "lib"', [(1, "state_dir", "'lib' must be absolute: begin with '/'")]),
        ('state_dir = ""', [(1, "state_dir", "'' must be absolute: begin with '/'")]),
        ('state_dir = "/a\\u0000"', [(1, "state_dir", "'/a\\x00' must be absolute: begin with '/'")]),
        ("\nstate_dir = 5", [(2, "state_dir", "must be a string, not an integer")]),
        (STATE_DIR + "nats = 5", [(2, "nats", "must be a table, not an integer")]),
        (STATE_DIR + "[[nats]]", [(2, "nats", "must be a table, not a list")]),
        (STATE_DIR + "colour = 1", [(2, "colour", "unknown key")]),
        (STATE_DIR + "[htpt01]", [(2, "htpt01", "unknown key (did you mean 'http01'?)")]),
        (STATE_DIR + '[log]\n"lev el" = 1', [(3, 'log."lev el"', "unknown key (did you mean 'level'?)")]),
        (STATE_DIR + 'subject_root = "a"', [(2, "subject_root",
         "unknown key (did you mean 'subject_root' under [nats]?)")]),
        (STATE_DIR + '[acme]\norders-per-ca = 5', [(3, "acme.orders-per-ca",
         "unknown key (did you mean 'orders_per_ca'?)")]),
        ('[nats]\nstate_dir = "/a"', [
            (None, "state_dir", MISSING),
            (2, "nats.state_dir", "unknown key (did you mean 'state_dir' above the first [table]?)"),
        ]),
    ],
)  # fmt: skip
def test_what_stands_in_the_wrong_place_is_named(
    write: Callable[[str], Path], text: str, expected: list[tuple[int | None, str, str]]
) -> None:
    """A key that is silently ignored costs an afternoon; a typing error should cost a minute."""
    assert mistakes_of(write(text)) == expected


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        ('acme.zerossl_api = "http://a"', "acme.zerossl_api", "'http://a' must begin with https://"),
        ('preflight.caa = "fail"', "preflight.caa", "'fail' must be one of block, off, warn"),
        ('rate_limits = [{ directory_url = "ca" }]', "rate_limits[0].directory_url", "'ca' must begin with https://"),
        ("rate_limits = 1", "rate_limits", "must be tables, each under [[rate_limits]], not an integer"),
        ("acme.orders_per_ca = 0", "acme.orders_per_ca", "'0' must be from 1 to 1000"),
        ("acme.orders_per_ca = 1001", "acme.orders_per_ca", "'1001' must be from 1 to 1000"),
        ("acme.orders_per_ca = true", "acme.orders_per_ca", "must be an integer, not a boolean"),
        ("acme.orders_per_ca = 1.0", "acme.orders_per_ca", "must be an integer, not a number with a fraction"),
        ("acme.order_timeout_seconds = 9.9", "acme.order_timeout_seconds", "'9.9' must be from 10 to 2592000"),
        ("acme.order_timeout_seconds = nan", "acme.order_timeout_seconds", "'nan' must be from 10 to 2592000"),
        ("acme.order_timeout_seconds = inf", "acme.order_timeout_seconds", "'inf' must be from 10 to 2592000"),
        ('acme.order_timeout_seconds = "1h"', "acme.order_timeout_seconds", "must be a number, not a string"),
        ("acme.order_timeout_seconds = 07:32:00", "acme.order_timeout_seconds",
         "must be a number, not a date or time"),
        ("dns.authoritative_port = 65536", "dns.authoritative_port", "'65536' must be from 1 to 65535"),
        ('log.level = "warn"', "log.level",
         "'warn' must be one of debug, error, info, warning (did you mean 'warning'?)"),
        ('log.format = "logfmt2000"', "log.format", "'logfmt2000' must be one of auto, console, journal, json"),
        ("log.level = []", "log.level", "must be a string, not a list"),
        ('http01.listen = "0.0.0.0:80"', "http01.listen", "must be a list, not a string"),
        ("http01.listen = [80]", "http01.listen[0]", "must be a string, not an integer"),
        ("http01.listen = [{}]", "http01.listen[0]", "must be a string, not a table"),
        ("nats.servers = false", "nats.servers", "must be a list, not a boolean"),
        ('nats.credentials_file = "x.creds"', "nats.credentials_file", "'x.creds' must be absolute: begin with '/'"),
        ('nats.server_path = "~/nats"', "nats.server_path", "'~/nats' must be absolute: begin with '/'"),
        ('acme.trust_files = ["/a", "b"]', "acme.trust_files[1]", "'b' must be absolute: begin with '/'"),
        ('acme.trust_files = ["/a", "/b", "/a"]', "acme.trust_files[2]", "is listed twice, first as entry [0]"),
        ('http01.listen = ["[::]:80", "[0::0]:080"]', "http01.listen[1]", "is listed twice, first as entry [0]"),
        ('http01.listen = ["0.0.0.0:443"]', "tlsalpn01.listen[0]", "0.0.0.0:443 is in http01.listen too"),
        ('http01.fallback = "proxy"', "http01.fallback", "'proxy' needs an upstream: the host:port of the web server"),
        ('http01.upstream = "a:80"', "http01.upstream",
         "is used with fallback = 'proxy' only, and fallback is '404'"),
        ('http01 = { fallback = "proxy", upstream = "localhost:80" }', "http01.upstream",
         "localhost:80 is where this listener itself listens"),
        ('tlsalpn01.upstream = "[::1]:443"', "tlsalpn01.upstream",
         "[::1]:443 is where this listener itself listens"),
        ('http01 = { fallback = "proxy", upstream = "127.0.0.1:443" }', "http01.upstream",
         "127.0.0.1:443 is where the daemon's other listener listens"),
        ('tlsalpn01.upstream = "localhost:80"', "tlsalpn01.upstream",
         "localhost:80 is where the daemon's other listener listens"),
        ('rest.tls_key_file = "/k"', "rest.tls_key_file", "needs tls_certificate_file beside it"),
        ('rest.tls_certificate_file = "/c"', "rest.tls_certificate_file", "needs tls_key_file beside it"),
        ('rest = { tls_certificate_file = "/c", tls_key_file = "/k", tls_managed = "a.test" }', "rest.tls_managed",
         "goes without tls_certificate_file and tls_key_file: keep one of the two ways"),
        ('rest.listen = ["/a", "127.0.0.1:0", "/b"]', "rest.listen[2]",
         "there is one UNIX socket, and /a is named already"),
        ('rest.listen = ["127.0.0.9:1", "192.0.2.1:1"]', "rest.listen[1]",
         "192.0.2.1:1 is not on loopback and needs TLS: tls_certificate_file and tls_key_file, or tls_managed"),
        ('metrics.listen = ["127.0.0.1:9797", "192.0.2.1:9797"]', "metrics.listen[1]",
         "192.0.2.1:9797 is not on loopback, and nobody is asked for a token there; use an address of [rest]"),
        ('rest.listen = ["[::]:1"]', "rest.listen[0]",
         "[::]:1 is not on loopback and needs TLS: tls_certificate_file and tls_key_file, or tls_managed"),
        ('rest.listen = ["127.0.0.1:80"]', "rest.listen[0]", "127.0.0.1:80 is taken by 0.0.0.0:80 in http01.listen"),
        ('rest = { listen = ["[::]:443"], tls_managed = "a.test" }', "rest.listen[0]",
         "[::]:443 is taken by [::]:443 in tlsalpn01.listen"),
        ('tlsalpn01.upstream = "a"', "tlsalpn01.upstream", "'a' needs a port, as in ca.example.org:443"),
        ('nats.events_root = "scaivault"', "nats.events_root", OVERLAP.format("scaivault", "scaivault.v1")),
        ('nats.subject_root = "scaivault"', "nats.subject_root", OVERLAP.format("scaivault.events", "scaivault")),
    ],
)  # fmt: skip
def test_a_wrong_value_is_told_with_what_would_be_right(
    write: Callable[[str], Path], text: str, key: str, message: str
) -> None:
    """Whoever reads the message should not need the reference to correct the value."""
    line = None if key == "tlsalpn01.listen[0]" else 2
    assert mistakes_of(write(STATE_DIR + text)) == [(line, key, message)]


def test_all_mistakes_of_a_file_are_reported_with_their_lines(write: Callable[[str], Path]) -> None:
    """Correcting one mistake must not bring up the next: a restart on a live host is not free."""
    path = write(
        """# state_dir = "/commented/out"
[nats]
servers = [
    # "nats://commented:1"
    "nats://ok",
    "ws://h",
    7,
]
subject_root = "a"
events_root = "a.b"
sever_path = "/x"
[http01]
listen = ["0.0.0.0:80",
          "nowhere"]
[acme]
orders_per_ca = 0
order_timeout_seconds = "long"
[logs]
"""
    )
    with pytest.raises(SettingsError) as caught:
        load(path)
    assert str(caught.value).replace(f"{path}", "F").splitlines() == [
        f"F: state_dir: {MISSING}",
        "F:6: nats.servers[1]: NATS over WebSocket is not supported: use nats:// or tls://",
        "F:7: nats.servers[2]: must be a string, not an integer",
        f"F:10: nats.events_root: {OVERLAP.format('a.b', 'a')}",
        "F:11: nats.sever_path: unknown key (did you mean 'server_path'?)",
        "F:14: http01.listen[1]: 'nowhere' needs a port, as in 0.0.0.0:80",
        "F:16: acme.orders_per_ca: '0' must be from 1 to 1000",
        "F:17: acme.order_timeout_seconds: must be a number, not a string",
        "F:18: logs: unknown key (did you mean 'log'?)",
    ]


@pytest.mark.parametrize(
    ("rules", "key", "message"),
    [
        ('{ kind = "new_order" }', "[0].kind", f"'new_order' must be one of {KINDS} (did you mean 'new_orders'?)"),
        ("{ amount = 0 }", "[0].amount", "'0' must be from 1 to 1000000"),
        ('{ scope = "name" }', "[0]",
         "new_orders are counted per address or account or registered_domain or name_set, not per name"),
        ('{ exempt = ["all"] }', "[0].exempt[0]", "'all' must be one of ari, new, renewal"),
        ('{ exempt = ["ari", "ari"] }', "[0].exempt[1]", "is listed twice, first as entry [0]"),
        ('{ exempt = "ari" }', "[0].exempt", "must be a list, not a string"),
        ("{ amount = 1 }, { window_seconds = 2 }, { amount = 9 }", "[2]",
         "limits the same as rules[0] over the same time: keep one of them"),
        ("5", "", "must be tables, each under [[rate_limits.rules]], not a list"),
    ],
)  # fmt: skip
def test_a_wrong_rule_is_told_with_its_place(write: Callable[[str], Path], rules: str, key: str, message: str) -> None:
    """A rule that is left out, or counted twice, costs certificates; one that stops the start costs a minute."""
    rules = re.sub(r"{[^}]*}", lambda rule: _completed(rule[0]), rules)
    text = STATE_DIR + f'[[rate_limits]]\ndirectory_url = "https://ca.test/"\nrules = [{rules}]'
    assert mistakes_of(write(text)) == [(4, f"rate_limits[0].rules{key}", message)]


def _completed(rule: str) -> str:
    """A rule with what it does not say itself."""
    usual = {"kind": '"new_orders"', "scope": '"account"', "amount": "1", "window_seconds": "1"}
    missing = [f"{name} = {value}" for name, value in usual.items() if f"{name} =" not in rule]
    return "{ " + ", ".join([*missing, rule.strip("{ }")]) + " }"


def test_a_ca_has_one_table_of_rate_limits(write: Callable[[str], Path]) -> None:
    """Of two one would be without effect."""
    table = '[[rate_limits]]\ndirectory_url = "https://ca.test/"\n'
    assert mistakes_of(write(STATE_DIR + table + table)) == [
        (5, "rate_limits[1].directory_url", "is taken already, by rate_limits[0]")
    ]


def test_wrong_rules_are_not_compared(write: Callable[[str], Path]) -> None:
    """What is wrong by itself is told first, and only that."""
    rule = '{ scope = "account", amount = 1, window_seconds = 1 }'
    text = STATE_DIR + f'[[rate_limits]]\ndirectory_url = "https://ca.test/"\nrules = [{rule}, {rule}]\nrates = 1'
    keys = [key for _, key, _ in mistakes_of(write(text))]
    assert keys == ["rate_limits[0].rules[0].kind", "rate_limits[0].rules[1].kind", "rate_limits[0].rates"]


def test_a_wrong_value_is_not_compared_with_others(write: Callable[[str], Path]) -> None:
    """A contradiction with a default that nobody wrote would only confuse."""
    text = STATE_DIR + '[nats]\nsubject_root = "scaivault.events"\nevents_root = "*"\n'
    text += '[http01]\nlisten = ["0.0.0.0:443"]\n[tlsalpn01]\nlisten = [1]\n'
    assert [key for _, key, _ in mistakes_of(write(text))] == ["nats.events_root", "tlsalpn01.listen[0]"]


def test_listeners_on_port_zero_do_not_collide(write: Callable[[str], Path]) -> None:
    """Port 0 is another port each time, so both listeners may ask for it."""
    settings = load(write(STATE_DIR + 'http01.listen = ["[::1]:0"]\ntlsalpn01.listen = ["[::1]:0"]'))
    assert settings.http01.listen == settings.tlsalpn01.listen == ("[::1]:0",)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a = 1\nb = \n", (2, "", "not valid TOML: Invalid value (column 5)")),
        (b"a = 1\r\na = 2\r\nb = 3", (2, "", "not valid TOML: Cannot overwrite a value (column 6)")),
        (b"[a]\n[b]\n[a]\n", (3, "", "not valid TOML: Cannot declare ('a',) twice (column 3)")),
        (b"a = [\n1\n\n", (2, "", "not valid TOML: Unclosed array")),
        (b"a = " + b"[" * 5000, (None, "", "lists or tables are nested too deeply")),
        (b"# ok\na = '\xff'\n", (2, "", "not UTF-8 text")),
    ],
)
def test_what_is_no_toml_is_told_with_its_line(
    write: Callable[[bytes], Path], content: bytes, expected: tuple[int | None, str, str]
) -> None:
    """Nothing can be said about the keys of such a file, but the place can."""
    assert mistakes_of(write(content)) == [expected]


def test_a_number_that_python_will_not_convert_is_a_mistake_and_no_crash(write: Callable[[str], Path]) -> None:
    """tomllib answers it with an error of another kind than its own."""
    [(line, key, message)] = mistakes_of(write("a = " + "1" * 5000))
    assert (line, key) == (None, "")
    assert message.startswith("not valid TOML: Exceeds the limit")


@pytest.mark.parametrize(("name", "reason"), [("none.toml", "No such file or directory"), (".", "Is a directory")])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, reason: str) -> None:
    """The most common mistake at a first start, and the daemon must end with EX_CONFIG."""
    path = tmp_path / name
    with pytest.raises(StartupError) as caught:
        load(path)
    assert str(caught.value) == f"{path}: cannot be read: {reason}"
    assert caught.value.exit_code == 78


def test_a_mistake_without_a_file_shows_its_key() -> None:
    """`check_files` may not know where the settings came from."""
    assert str(Mistake(file=None, line=None, key="a.b", message="is wrong")) == "a.b: is wrong"


@pytest.mark.parametrize(
    "url",
    ["nats://user:hunter2@h:4222", "tls://hunter2@h:4222", "nats://u:hunter2%40x@h:4222", "nats://:hunter2@h:4222/"],
)
def test_settings_print_without_credentials(write: Callable[[str], Path], url: str) -> None:
    """Settings are logged at a start and end up in error reports."""
    settings = load(write(f'{STATE_DIR}nats.servers = ["{url}"]'))
    [server] = settings.nats.servers
    assert "***@h:4222" in repr(settings)
    assert "hunter2" not in f"{settings!r} {settings} {server} {server!r}"
    with pytest.raises(TypeError):
        msgspec.json.encode(settings.nats)
    assert server.reveal() == url.removesuffix("/")


@pytest.mark.parametrize(
    ("word", "expected"), [("lisen", "listen"), ("Order-Timeout", "order_timeout"), ("zzz", None), ("", None)]
)
def test_nearest_suggests_only_what_is_near(word: str, expected: str | None) -> None:
    """A far-fetched suggestion misleads more than none."""
    assert nearest(word, ["listen", "order_timeout", "servers"]) == expected


def _uncommented(text: str) -> str:
    return re.sub(r"^#(?=[a-z])", "", text, flags=re.MULTILINE)


def test_the_annotated_file_shows_the_defaults(write: Callable[[str], Path]) -> None:
    """People copy a line from it to change it; a wrong default there would change it already."""
    text = ANNOTATED.read_text()
    assert load(ANNOTATED) == load(write(_uncommented(text))) == Settings(state_dir=Path("/var/lib/scaivaultd"))


def test_the_annotated_file_names_every_key_once_with_its_meaning(write: Callable[[str], Path]) -> None:
    """The meaning is written in one place, the Struct; the file must follow it."""
    text = _uncommented(ANNOTATED.read_text())
    commentary = " ".join(re.sub(r"^# ", "", line) for line in text.splitlines())
    for option in _leaves():
        assert f" {option.description} " in commentary, option.name
    shown = re.findall(r"^(?:# e\.g\. )?(\w+) = ", text, flags=re.MULTILINE)
    assert shown == [option.name for option in _leaves()]


def test_the_examples_in_the_annotated_file_are_valid(write: Callable[[str], Path]) -> None:
    """An example that the daemon refuses is worse than none."""
    text = _uncommented(ANNOTATED.read_text()).replace("# e.g. ", "")
    text = re.sub(r"^tls_managed = .*", "", text, flags=re.MULTILINE)  # goes without the files that are named too
    settings = load(write(text.replace('fallback = "404"', 'fallback = "proxy"')))  # `upstream` goes with it only
    unset = [option.name for option in _leaves() if option.default is None]
    sections = (settings.nats, settings.rest, settings.http01, settings.tlsalpn01, settings.secrets, settings.tracing)
    found = {name: value for each in sections for name, value in msgspec.structs.asdict(each).items()}
    assert unset
    assert [name for name in unset if found[name] is None] == ["tls_managed"]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_each_example_decodes(path: Path) -> None:
    """They are where most configurations begin."""
    assert load(path).state_dir.is_absolute()


def test_there_are_examples() -> None:
    """Moving the folder must not turn the test above into nothing."""
    stems = [path.stem for path in EXAMPLES]
    assert stems == ["external-nats", "minimal", "multi-team", "private-ca", "shared-ports", "unprivileged"]


def test_the_reference_page_is_up_to_date() -> None:
    """It is generated: run the command below after changing a key."""
    command = (
        "python -c 'from scaivaultd.settings_reference import reference_markdown as r; print(r(), end=\"\")'"
        f" > {REFERENCE.relative_to(ROOT)}"
    )
    assert REFERENCE.read_text() == reference_markdown(), command


def test_every_key_is_described_and_every_number_bounded() -> None:
    """The description is what the reference says, the bounds are what keeps a typing error small."""
    for option in [*_leaves(), *options_of(Rule)]:
        assert option.description.endswith("."), option.name
        if isinstance(option.kind, inspect.IntType | inspect.FloatType):
            lowest, highest = bounds_of(option.kind)
            assert lowest < highest


def _leaves() -> Iterator[Option]:
    for option in options_of(Settings):
        kind = option.kind.item_type if isinstance(option.kind, inspect.VarTupleType) else option.kind
        if isinstance(kind, inspect.StructType):
            yield from options_of(kind.cls)
        else:
            yield option


def test_decoding_looks_at_no_file(write: Callable[[str], Path]) -> None:
    """A configuration is checked in a pipeline where /etc/scaivaultd does not exist."""
    assert load(write(STATE_DIR + 'acme.trust_files = ["/nowhere/root.pem"]')).acme.trust_files


def test_reading_the_configuration_imports_little() -> None:
    """`check-config` and every start pay for it: no event loop, no HTTP, no cryptography."""
    heavy = {"aiohttp", "cryptography", "nats", "asyncio"}
    script = f"import sys, scaivaultd.settings; print(*({heavy} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert found.stdout.strip() == ""


SERVERS = 'state_dir = "/s"\n[nats]\nservers = ["nats://a:4222"]\n'


@pytest.mark.parametrize(
    ("ingress", "mistake"),
    [
        ([("a", "trusted"), ("a", "subject_token")], "'a' and 'a' overlap: a request would be taken twice"),
        ([("a", "trusted"), ("a.b", "subject_token")], "'a.b' and 'a' overlap: a request would be taken twice"),
        ([("scaivault.events.x", "trusted")], "'scaivault.events.x' and events_root 'scaivault.events' overlap"),
        (
            [("a", "auth_callout")],
            "auth_callout at servers that are not our own needs callout_seed_file, the key that signs logins",
        ),
    ],
)
def test_roots_at_which_nobody_could_tell_who_asks_are_mistakes(
    write: Callable[[str], Path], ingress: list[tuple[str, str]], mistake: str
) -> None:
    """One mode for each subject root: with two, the weaker one would hold."""
    tables = "".join(f'[[nats.ingress]]\nroot = "{root}"\nidentity = "{mode}"\n' for root, mode in ingress)
    with pytest.raises(SettingsError) as caught:
        load(write(SERVERS + tables))
    assert [each.message for each in caught.value.mistakes] == [mistake]


def test_one_root_for_each_way_to_know_the_sender_is_fine(write: Callable[[str], Path]) -> None:
    """Many buses serve several kinds of callers."""
    tables = "".join(
        f'[[nats.ingress]]\nroot = "{root}"\nidentity = "{mode}"\n'
        for root, mode in (("a", "trusted"), ("b", "account_import"))
    )
    assert [each.identity for each in load(write(SERVERS + tables)).nats.ingress] == ["trusted", "account_import"]


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ('listen = ["127.0.0.1:8420"]', "127.0.0.1:8420"),
        ('listen = ["/run/x/api.sock"]', "/run/x/api.sock"),
        ('listen = ["unix:/run/x/api.sock"]', "/run/x/api.sock"),
        ('origins = ["https://App.example.org:443"]', "https://app.example.org"),
        ('origins = ["http://localhost:3000"]', "http://localhost:3000"),
    ],
)
def test_rest_places_and_origins_come_in_one_spelling(write: Callable[[str], Path], given: str, read: str) -> None:
    """Browsers send origins in that spelling, and it is compared."""
    rest = load(write(f'state_dir = "/s"\n[rest]\n{given}\n')).rest
    assert [*rest.listen, *rest.origins] == [read]


@pytest.mark.parametrize(
    "given",
    [
        'listen = ["/run/../api.sock"]',
        'listen = ["api.sock"]',
        'listen = ["localhost"]',
        'origins = ["*"]',
        'origins = ["https://app.example.org/"]',
        'origins = ["ftp://app.example.org"]',
        'origins = ["https://user@app.example.org"]',
    ],
)
def test_what_is_no_place_or_origin_is_a_mistake(write: Callable[[str], Path], given: str) -> None:
    """A pattern among the origins would look as if it did something."""
    with pytest.raises(SettingsError):
        load(write(f'state_dir = "/s"\n[rest]\n{given}\n'))
