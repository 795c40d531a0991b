"""What `check-config` says of the tables that are for plugins."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

PROVIDER = '[[dns_provider]]\nname = "a"\n'


def check(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    file = folder / "scaivaultd.toml"
    file.write_text(f'state_dir = "{folder}"\n{text}')
    return subprocess.run(
        [sys.executable, "-m", "scaivaultd", "check-config", "--config", str(file)],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (f'{PROVIDER}type = "exce"\n', ":4: dns_provider[0].type: no installed plugin brings the type of DNS provider"),
        (f'{PROVIDER}type = "exce"\n', "(did you mean 'exec'?)"),
        (f'{PROVIDER}type = "exec"\nconfig = {{ porgram = "/x" }}\n', ":5: dns_provider[0].config: "),
        (
            f'{PROVIDER}type = "exec"\nconfig = {{ program = "/x", ttl = "x" }}\n',
            "Expected `int`, got `str` - at `ttl`",
        ),
        (
            '[secrets.backends.vault]\nurl = "x"\n',
            "secrets.backends.vault: no installed plugin brings the secret backend",
        ),
        ("[solvers.http-01]\nx = 1\n", "solvers.http-01: Object contains unknown field `x`"),
        (
            "[solvers.upload]\nx = 1\n",
            "no installed plugin brings the solver 'upload'; there is dns-01, http-01, tls-alpn",
        ),
    ],
)
def test_every_mistake_is_told_with_its_line(tmp_path: Path, text: str, told: str) -> None:
    """Otherwise it is met at night, when the first certificate is due by that provider."""
    ended = check(tmp_path, text)
    assert ended.returncode == 78
    assert told in ended.stderr


def test_what_plugins_understand_is_no_mistake(tmp_path: Path) -> None:
    """A check that cries wolf is switched off."""
    ended = check(tmp_path, f'{PROVIDER}type = "exec"\nconfig = {{ program = "/bin/true" }}\n')
    assert (ended.returncode, ended.stderr) == (0, "")
