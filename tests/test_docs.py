"""The documentation is whole: every page can be reached, every link leads somewhere, every command exists."""

from __future__ import annotations

import re
import shlex
import shutil
import socket
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import click
import pytest

from scaivaultd import __main__ as daemon
from scaivaultd import ctl, reference_man

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md")])
TREES: dict[str, click.Command] = {"scaivaultctl": ctl.main, "scaivaultd": daemon.main}
BEFORE = re.compile(r"\w+=.*|sudo|podman|docker|exec|until|while|if|!|\$|scaivaultd")
LOADING = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}


class Links(HTMLParser):
    """What a page of the site loads, and where it leads."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.leading: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the addresses of one tag."""
        given = dict(attrs)
        if address := given.get(LOADING.get(tag, "")):
            self.loaded.append(address)
        if tag == "a" and (address := given.get("href")):
            self.leading.append(address)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as `make docs` builds it; a warning of mkdocs fails it."""
    folder = tmp_path_factory.mktemp("docs") / "site"
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert built.returncode == 0, built.stderr
    return folder


def test_every_page_is_in_the_navigation() -> None:
    """A page that nobody comes by is not read."""
    listed = re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2])
    assert sorted(listed) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    """It is read where there is no internet, and tells nobody who reads it."""
    for page in site.rglob("*.html"):
        links = Links()
        links.feed(page.read_text())
        assert [each for each in links.loaded if urlsplit(each).netloc] == [], page
    for style in site.rglob("*.css"):
        assert re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//[^)\s]*", style.read_text()) == [], style


def test_no_link_of_the_site_is_dead(site: Path) -> None:
    """What leads nowhere is worse than no link."""
    for page in site.rglob("*.html"):
        if page.name == "404.html":  # its links are absolute, for wherever it is shown
            continue
        links = Links()
        links.feed(page.read_text())
        for address in (*links.loaded, *links.leading):
            parts = urlsplit(address)
            if not parts.scheme and parts.path:
                assert (page.parent / unquote(parts.path)).exists(), f"{page}: {address}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_link_of_the_sources_is_dead(page: Path) -> None:
    """Pages are read in the checkout too, and link to files that are not in the site."""
    for address in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text())):
        parts = urlsplit(address)
        if not parts.scheme and parts.path:
            assert (page.parent / unquote(parts.path)).exists(), address


def without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))


def code_of(text: str) -> Iterator[str]:
    """The lines of all code blocks, each with what a backslash at its end continues."""
    text = re.sub(r"\\\n\s*", " ", text)
    fence: str | None = None
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            fence = line.strip().removeprefix("```") if fence is None else None
        elif fence in ("", "sh", "bash", "console") or (fence is None and line.startswith("    ")):
            yield line.strip()


def invocations(text: str) -> Iterator[tuple[str, list[str]]]:
    """Every call of one of our commands in a page: its name and its arguments."""
    for line in code_of(text):
        if not re.search(r"\bscaivault(ctl|d) ", line):
            continue
        lexer = shlex.shlex(line.replace("$(", " ; ").replace("`", " ; "), posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        try:
            words = list(lexer)
        except ValueError:
            continue  # a line of another language
        yield from _calls(words)


def _calls(words: list[str]) -> Iterator[tuple[str, list[str]]]:
    call: list[str] = []
    for word in [*words, ";"]:
        if not set(word) <= set("();<>|&"):
            call.append(word)
        elif set(word) & set("<>"):
            call.append("<>")
        else:
            if found := _ours(call):
                yield found
            call = []


def _ours(call: list[str]) -> tuple[str, list[str]] | None:
    """What is called, when it is ours: after `sudo`, variables, `podman exec NAME`, `until`."""
    for place, word in enumerate(call):
        name = word.rpartition("/")[2]
        if name in TREES and call[place + 1 : place + 2] != ["scaivaultctl"]:
            is_called = all(BEFORE.fullmatch(each) for each in call[:place])
            return (name, _without_redirections(call[place + 1 :])) if is_called else None
    return None


def _without_redirections(words: list[str]) -> list[str]:
    while "<>" in words:  # with the file it names, and the number of a stream before it
        at = words.index("<>")
        words = [*words[: at - (words[at - 1 : at] in (["1"], ["2"]))], *words[at + 2 :]]
    return words


def judge(command: click.Command, arguments: list[str], name: str) -> None:
    """Raise click.UsageError unless these words would be understood; of values only choices are looked at."""
    context = click.Context(command, info_name=name)
    while True:
        given, left, _ = command.make_parser(context).parse_args(list(arguments))
        for parameter in command.params:
            value = given.get(parameter.name or "")
            if isinstance(parameter.type, click.Choice) and isinstance(value, str):
                parameter.type.convert(value, parameter, context)
            if (
                isinstance(parameter, click.Argument)
                and parameter.required
                and not isinstance(value, str | tuple | list)
            ):
                raise click.UsageError(f"{parameter.name} is missing", context)
        if not isinstance(command, click.Group):
            if left:
                raise click.UsageError(f"{' '.join(left)} is too much", context)
            return
        if not left or {"--help", "-h"} & set(arguments):
            return
        below = command.get_command(context, left[0])
        if below is None:
            raise click.UsageError(f"there is no {left[0]} in {context.command_path}", context)
        context = click.Context(below, info_name=left[0], parent=context)
        command, arguments = below, left[1:]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_of_the_pages_exists(page: Path) -> None:
    """Who types what is printed must not be told that there is no such option."""
    if page.name in ("CHANGELOG.md", "scaivaultctl.md"):
        pytest.skip("shows usages, not calls")
    wrong = []
    for name, arguments in invocations(page.read_text()):
        if "..." in arguments:
            continue
        try:
            judge(TREES[name], arguments, name)
        except click.UsageError as error:
            wrong.append(f"{name} {' '.join(arguments)}: {error.format_message()}")
    assert wrong == []


def test_the_pages_have_commands_at_all() -> None:
    """A reader of pages that finds nothing would find nothing wrong."""
    assert sum(len(list(invocations(page.read_text()))) for page in PAGES) > 150


@pytest.mark.parametrize(
    "line",
    [
        "scaivaultctl cert isue www.example.org",
        "sudo scaivaultctl cert issue www.example.org --acount le",
        "scaivaultctl cert export www.example.org --layout nginx",
        "/opt/scaivaultd/bin/scaivaultd check-config --confg x > y",
        "export TOKEN=$(scaivaultctl token crate ops)",
        "echo x | scaivaultctl cert show",
    ],
)
def test_a_wrong_command_would_be_found(line: str) -> None:
    """Whatever surrounds it."""
    [(name, arguments)] = invocations(f"```sh\n{line}\n```\n")
    with pytest.raises(click.UsageError):
        judge(TREES[name], arguments, name)


@pytest.mark.parametrize("name", sorted(reference_man.man_pages()))
def test_groff_has_nothing_to_say_about_the_man_pages(name: str) -> None:
    """A warning is a word that is missing on somebody's terminal."""
    if shutil.which("groff") is None:
        pytest.skip("groff is missing: apt install groff")
    page = reference_man.man_pages()[name]
    shown = subprocess.run(
        ["groff", "-man", "-ww", "-Tutf8", "-P-c"], input=page, capture_output=True, text=True, timeout=60
    )
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "SEE ALSO" in re.sub(".\b", "", shown.stdout)


@pytest.mark.parametrize(
    "text",
    ["a \\nb \\fB c", "First. .TH is no request", "'so' is none", "it's ~/.config, A^B and --yes", '"quoted"', ".SH"],
)
def test_man_pages_show_text_as_it_is(text: str) -> None:
    """A backslash, or a dot at the beginning of a line, would be an instruction, and what it stands for be gone."""
    if shutil.which("groff") is None:
        pytest.skip("groff is missing: apt install groff")
    page = "\n".join([".TH X 1", ".SH Y", *reference_man.prose(text)]) + "\n"
    shown = subprocess.run(
        ["groff", "-man", "-ww", "-Tutf8", "-P-c"], input=page, capture_output=True, text=True, timeout=60
    )
    assert text in " ".join(re.sub(".\b", "", shown.stdout).replace(".  ", ". ").split())


def test_the_man_pages_hold_every_verb_and_every_table(tmp_path: Path) -> None:
    """They are what there is without a browser; the package takes them from where they are written."""
    reference_man.write(tmp_path / "man")
    pages = {page.name: page.read_text() for page in (tmp_path / "man").iterdir()}
    assert set(pages) == {"scaivaultd.8", "scaivaultctl.1", "scaivaultd.toml.5"}
    assert '.SS "cert issue"' in pages["scaivaultctl.1"]
    assert '.SS "check\\-config"' in pages["scaivaultd.8"]
    assert '.SH "[nats]"' in pages["scaivaultd.toml.5"]
    assert '.SH "[[nats.ingress]]"' in pages["scaivaultd.toml.5"]


@pytest.mark.system
def test_the_offline_tutorial_works_as_it_is_printed(tmp_path: Path) -> None:
    """Letter by letter but for the ports, which somebody else may have here."""
    text = (DOCS / "tutorial/offline.md").read_text()
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert blocks[0].startswith("make venv\n")  # what we run in
    script = "\n".join(blocks[1:])
    for port in ("14000", "5080"):
        script = script.replace(port, str(free_port()))
    script = f"set -e\nexport PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH\n" + script.replace(
        "daemon=$!\n", "daemon=$!\ntrap 'kill $daemon $ca 2>/dev/null || true' EXIT\n"
    )
    run = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=110)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "files/cert.pem: OK" in run.stdout
    assert "certificate.renewed" in run.stdout
    assert list(tmp_path.iterdir()) == []


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port
