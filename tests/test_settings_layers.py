"""The layers of the configuration: which one wins, and where a mistake is said to be."""

from __future__ import annotations

from pathlib import Path

import pytest

from scaivaultd.settings import layers_of, load
from scaivaultd.settings_layers import SettingsError

STATE_DIR = 'state_dir = "/var/lib/scaivaultd"\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "conf.d").mkdir()
    path = tmp_path / "scaivaultd.toml"
    path.write_text(STATE_DIR)
    return path


def drop_in(file: Path, name: str, text: str) -> None:
    (file.parent / "conf.d" / name).write_text(text)


def mistakes_of(file: Path, **environment: str) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load(file, environment)
    return [str(each).replace(f"{file.parent}/", "") for each in caught.value.mistakes]


def test_the_later_layer_wins_key_by_key(file: Path) -> None:
    """A drop-in that changes one key of a table must not lose the others."""
    file.write_text(f'{STATE_DIR}[log]\nlevel = "error"\nformat = "json"\n[dns]\nresolvers = ["192.0.2.1"]\n')
    drop_in(file, "20-b.toml", '[log]\nlevel = "warning"\n')
    drop_in(file, "10-a.toml", '[log]\nlevel = "info"\n[dns]\nresolvers = ["192.0.2.2"]\n')
    settings = load(file)
    assert (settings.log.level, settings.log.format) == ("warning", "json")
    assert settings.dns.resolvers == ("192.0.2.2:53",)
    assert load(file, {"SCAIVAULT__LOG__LEVEL": "debug"}).log.level == "debug"


def test_tables_of_an_array_are_added_and_an_empty_list_takes_them_away(file: Path) -> None:
    """Each provider in a file of its own; and a way out for who wants none of them."""
    table = '[[dns_provider]]\nname = "{0}"\ntype = "exec"\n'
    file.write_text(STATE_DIR + table.format("a"))
    drop_in(file, "b.toml", table.format("b") + table.format("c"))
    assert [each.name for each in load(file).dns_provider] == ["a", "b", "c"]
    assert layers_of(file).mistake(("dns_provider", 2, "name"), "x").line == 5
    drop_in(file, "z.toml", "dns_provider = []\n")
    assert load(file).dns_provider == ()


def test_only_files_that_are_meant_are_drop_ins(file: Path) -> None:
    """What editors and packages leave behind is not the administrator's word."""
    for name in ("a.toml~", ".a.toml", "a.toml.dpkg-old", "README"):
        drop_in(file, name, "nonsense = [")
    assert load(file).state_dir == Path("/var/lib/scaivaultd")


@pytest.mark.parametrize(
    ("variables", "key", "value"),
    [
        ({"SCAIVAULT__ACME__ORDERS_PER_CA": "4"}, "acme.orders_per_ca", 4),
        ({"SCAIVAULT__METRICS__COMPAT_X509": "true"}, "metrics.compat_x509", True),
        ({"SCAIVAULT__REST__LISTEN": '["127.0.0.1:8080"]'}, "rest.listen", ("127.0.0.1:8080",)),
        ({"SCAIVAULT__NATS__SUBJECT_ROOT": "2026"}, "nats.subject_root", "2026"),
        ({"SCAIVAULT__NATS__SUBJECT_ROOT": '"quoted"'}, "nats.subject_root", "quoted"),
        ({"SCAIVAULT__STATE_DIR": "/srv/state"}, "state_dir", Path("/srv/state")),
        ({"SCAIVAULT__SOLVERS__UPLOAD__HOST": "x = 1\ny = 2"}, "solvers", {"upload": {"host": "x = 1\ny = 2"}}),
        ({"SCAIVAULT_TOKEN": "x", "SCAIVAULT_LOG_LEVEL": "x"}, "log.level", "info"),
    ],
)
def test_variables_hold_toml_or_a_bare_text(file: Path, variables: dict[str, str], key: str, value: object) -> None:
    """Nobody should have to quote quotes in a unit file."""
    found: object = load(file, variables)
    for part in key.split("."):
        found = getattr(found, part)
    assert found == value


def test_every_mistake_has_its_place_whatever_layer_it_is_in(file: Path) -> None:
    """Otherwise the administrator searches five files."""
    file.write_text(f'{STATE_DIR}[log]\nlevle = "info"\n')
    drop_in(file, "a.toml", '\n[log]\nformat = "jsno"\n')
    assert mistakes_of(file, SCAIVAULT__HTTP__LISTEN="x", SCAIVAULT__ACME__ORDERS_PER_CA="many") == [
        "scaivaultd.toml:3: log.levle: unknown key (did you mean 'level'?)",
        "conf.d/a.toml:3: log.format: 'jsno' must be one of auto, console, journal, json (did you mean 'json'?)",
        "SCAIVAULT__ACME__ORDERS_PER_CA: acme.orders_per_ca: must be an integer, not a string",
        "SCAIVAULT__HTTP__LISTEN: http: unknown key (did you mean 'http01'?)",
    ]


def test_a_value_is_judged_where_it_was_said_last(file: Path) -> None:
    """What a later layer has mended is no mistake, and what it has broken is its own."""
    file.write_text(f'{STATE_DIR}[dns]\nresolvers = ["a", "b"]\n')
    drop_in(file, "a.toml", 'dns.resolvers = ["192.0.2.1", "c"]\n')
    [mistake] = mistakes_of(file)
    assert mistake.startswith("conf.d/a.toml:1: dns.resolvers[1]: ")


def test_every_file_that_cannot_be_read_is_told(file: Path) -> None:
    """One start, one list."""
    file.write_text("state_dir =\n")
    drop_in(file, "a.toml", "[log\n")
    (file.parent / "conf.d" / "b.toml").mkdir()
    told = mistakes_of(file)
    assert [each.split(": ")[0] for each in told] == ["scaivaultd.toml:1", "conf.d/a.toml:1", "conf.d/b.toml"]


def test_a_password_in_a_variable_is_not_repeated(file: Path) -> None:
    """What is wrong goes to logs and tickets."""
    [told] = mistakes_of(file, SCAIVAULT__NATS__SERVERS='["http://user:hunter2@host"]')
    assert "hunter2" not in told
    assert told.startswith("SCAIVAULT__NATS__SERVERS: nats.servers[0]: ")
