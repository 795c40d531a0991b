"""What systemd hands over, and what it is told: the datagrams and the sockets, without a systemd."""

from __future__ import annotations

import array
import json
import os
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from scaivaultd.settings import Http01Settings, Settings, TlsAlpn01Settings
from scaivaultd.settings_values import ListenAddress
from scaivaultd.systemd import Notifier, PassedSockets, address_of, take

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """A service manager's end of $NOTIFY_SOCKET."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.bind(str(tmp_path / "notify"))
        bound.settimeout(20)
        yield bound


@pytest.fixture
def notifier(manager: socket.socket) -> Iterator[Notifier]:
    made = Notifier(manager.getsockname())
    yield made
    made.close()


class TestNotifier:
    @pytest.mark.parametrize(
        ("tell", "lines"),
        [
            (lambda it: it.ready("Ready: 3 certificates"), ["READY=1", "STATUS=Ready: 3 certificates"]),
            (lambda it: it.status("Sealed"), ["STATUS=Sealed"]),
            (lambda it: it.reloading(12.5), ["RELOADING=1", "MONOTONIC_USEC=12500000", "STATUS=Reloading"]),
            (lambda it: it.stopping("Stopping"), ["STOPPING=1", "STATUS=Stopping"]),
            (lambda it: it.extend(15.0), ["EXTEND_TIMEOUT_USEC=15000000"]),
            (lambda it: it.alive(), ["WATCHDOG=1"]),
        ],
    )
    def test_what_is_told_is_one_datagram_of_assignments(
        self, manager: socket.socket, notifier: Notifier, tell: Callable[[Notifier], bool], lines: list[str]
    ) -> None:
        """systemd reads it all at once: a RELOADING whose time came later would be refused."""
        assert tell(notifier)
        assert manager.recv(4096).decode().split("\n") == lines

    def test_what_others_wrote_makes_no_line_of_its_own(self, manager: socket.socket, notifier: Notifier) -> None:
        """A path or an answer of a CA in a status must not become an assignment."""
        notifier.status("no such file: a\nMAINPID=1")
        assert manager.recv(4096) == b"STATUS=no such file: a MAINPID=1"

    def test_an_abstract_address_is_understood(self) -> None:
        """systemd in containers, and its own user manager, have used them."""
        name = f"scaivaultd-test-{os.getpid()}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
            bound.bind(f"\0{name}")
            bound.settimeout(20)
            notifier = Notifier(f"@{name}")
            assert notifier.alive()
            notifier.close()
            assert bound.recv(100) == b"WATCHDOG=1"

    def test_without_a_manager_telling_does_nothing(self) -> None:
        """Most daemons on a desk and in containers have none."""
        notifier = Notifier(None)
        assert (notifier.is_heard, notifier.alive()) == (False, True)
        notifier.barrier()

    def test_an_address_where_nobody_is_does_no_harm(self, tmp_path: Path) -> None:
        """A wrong variable must not keep the daemon down."""
        assert not Notifier(str(tmp_path / "nobody")).is_heard

    def test_a_manager_that_goes_away_does_no_harm(self, manager: socket.socket, notifier: Notifier) -> None:
        """It is told that nothing arrived, and lives on."""
        manager.close()
        assert notifier.ready("Ready") is False
        notifier.barrier()

    def test_the_barrier_waits_until_all_was_read(self, manager: socket.socket, notifier: Notifier) -> None:
        """systemd looks up who wrote when it reads; a process that is gone by then is a stranger to it."""
        notifier.status("the last word")
        waiting = threading.Thread(target=notifier.barrier)
        waiting.start()
        assert manager.recv(4096) == b"STATUS=the last word"
        message, ancillary, _, _ = manager.recvmsg(4096, socket.CMSG_SPACE(4))
        assert message == b"BARRIER=1"
        assert waiting.is_alive()
        (level, kind, data) = ancillary[0]
        assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
        os.close(array.array("i", data)[0])
        waiting.join(20)
        assert not waiting.is_alive()


class TestTake:
    def test_the_environment_of_children_speaks_of_none_of_it(self, manager: socket.socket) -> None:
        """A nats-server or a hook that took itself for the service would confuse systemd."""
        environment = {
            "NOTIFY_SOCKET": manager.getsockname(),
            "WATCHDOG_USEC": "30000000",
            "WATCHDOG_PID": "77",
            "LISTEN_PID": "1",
            "LISTEN_FDS": "0",
            "LISTEN_FDNAMES": "a:b",
            "LISTEN_PIDFDID": "5",
            "PATH": "/usr/bin",
        }
        handed = take(environment, 77)
        heard = handed.notifier.is_heard
        handed.notifier.close()
        assert environment == {"PATH": "/usr/bin"}
        assert (heard, handed.watchdog_seconds, handed.sockets.named) == (True, 30.0, ())

    @pytest.mark.parametrize(
        ("told", "seconds"),
        [
            ({}, None),
            ({"WATCHDOG_USEC": "2000000"}, 2.0),
            ({"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": "78"}, None),
            ({"WATCHDOG_USEC": "0"}, None),
            ({"WATCHDOG_USEC": "soon"}, None),
        ],
    )
    def test_the_watchdog_is_for_the_process_it_names(self, told: dict[str, str], seconds: float | None) -> None:
        """One that was meant for a wrapper would never hear from it, and kill us."""
        assert take(dict(told), 77).watchdog_seconds == seconds

    @pytest.mark.parametrize("count", ["", "many", "-1"])
    def test_a_count_that_is_none_is_no_socket(self, count: str) -> None:
        """Whatever is in the environment, the start does not fail of it."""
        assert take({"LISTEN_PID": "77", "LISTEN_FDS": count}, 77).sockets.named == ()

    def test_sockets_come_with_their_names_and_stay_from_children(self) -> None:
        """A child that held port 80 open would keep it when the unit's socket is stopped."""
        program = """if True:
            import json, os, socket
            from scaivaultd.systemd import address_of, take
            listening = socket.create_server(("127.0.0.1", 0))
            reading, _ = os.pipe()
            os.dup2(listening.fileno(), 60)
            os.dup2(reading, 61)
            for number in (3, 5):
                os.dup2(60, number)
            os.dup2(61, 4)
            told = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "3", "LISTEN_FDNAMES": "http01:a-pipe"}
            of_another = take({**told, "LISTEN_PID": "1"}, os.getpid()).sockets.named
            named = take(told, os.getpid()).sockets.named
            print(json.dumps([
                [[name, each.fileno(), address_of(each) == address_of(listening)] for name, each in named],
                [os.get_inheritable(each.fileno()) for _, each in named],
                [each.getblocking() for _, each in named],
                os.path.exists("/proc/self/fd/4"),
                len(of_another),
            ]))
        """
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
        named, inheritable, blocking, is_pipe_open, of_another = json.loads(done.stdout)
        assert named == [["http01", 3, True], ["", 5, True]]
        assert (inheritable, blocking, is_pipe_open) == ([False, False], [False, False], False)
        assert of_another == 0, "they are for the process that started us"


class TestSorting:
    @pytest.fixture
    def make(self, tmp_path: Path) -> Iterator[Callable[..., socket.socket]]:
        made: list[socket.socket] = []

        def listening(family: int = socket.AF_INET, *, kind: int = socket.SOCK_STREAM, listens: bool = True) -> Any:
            opened = socket.socket(family, kind)
            made.append(opened)
            match family:
                case socket.AF_UNIX:
                    opened.bind(str(tmp_path / f"{len(made)}.sock"))
                case socket.AF_INET6:
                    opened.bind(("::1", 0))
                case _:
                    opened.bind(("127.0.0.1", 0))
            if listens and kind == socket.SOCK_STREAM:
                opened.listen()
            return opened

        yield listening
        for each in made:
            each.close()

    def sort(self, tmp_path: Path, *named: tuple[str, socket.socket], **listen: str) -> Any:
        http01 = Http01Settings(listen=tuple(map(ListenAddress, filter(None, [listen.get("http01")]))))
        tlsalpn01 = TlsAlpn01Settings(listen=tuple(map(ListenAddress, filter(None, [listen.get("tlsalpn01")]))))
        settings = Settings(state_dir=tmp_path, http01=http01, tlsalpn01=tlsalpn01)
        return PassedSockets(named=named).sorted_for(settings)

    def test_names_decide_in_any_order(self, tmp_path: Path, make: Callable[..., socket.socket]) -> None:
        """systemd passes the sockets of several units in an order that changes from start to start."""
        v4, v6, tls, api = make(), make(socket.AF_INET6), make(), make(socket.AF_UNIX)
        named = [("http01", v4), ("api", api), ("tls-alpn01", tls), ("http01", v6)]
        for order in (named, named[::-1]):
            found = self.sort(tmp_path, *order)
            assert set(found.http01) == {v4, v6}
            assert (found.tlsalpn01, found.api, found.unused) == ((tls,), api, ())

    def test_without_a_name_the_address_decides(self, tmp_path: Path, make: Callable[..., socket.socket]) -> None:
        """Units of others name their sockets by the unit's name, which says nothing to us."""
        http01, tls, api = make(), make(), make(socket.AF_UNIX)
        found = self.sort(
            tmp_path,
            ("acme.socket", tls),
            ("acme.socket", http01),
            ("acme.socket", api),
            http01=address_of(http01),
            tlsalpn01=address_of(tls),
        )
        assert (found.http01, found.tlsalpn01, found.api) == ((http01,), (tls,), api)

    def test_what_nobody_has_a_use_for_is_closed_and_told(
        self, tmp_path: Path, make: Callable[..., socket.socket]
    ) -> None:
        """An open socket that nobody accepts at looks to a CA like a daemon that hangs."""
        stray, datagrams, mute = make(), make(kind=socket.SOCK_DGRAM), make(listens=False)
        unix, api, second = make(socket.AF_UNIX), make(socket.AF_UNIX), make(socket.AF_UNIX)
        of_tcp = make()
        found = self.sort(
            tmp_path,
            ("metrics", stray),
            ("http01", datagrams),
            ("http01", mute),
            ("http01", unix),
            ("api", of_tcp),
            ("api", api),
            ("api", second),
        )
        assert (found.http01, found.tlsalpn01, found.api) == ((), (), api)
        assert [each.split("=")[0] for each in found.unused] == ["metrics", "http01", "http01", "http01", "api", "api"]
        assert [each.fileno() for each in (stray, datagrams, mute, unix, of_tcp, second)] == [-1] * 6

    def test_addresses_are_told_as_administrators_write_them(self, make: Callable[..., socket.socket]) -> None:
        """They are compared with those of the configuration, and stand in the log."""
        v4, v6, local = make(), make(socket.AF_INET6), make(socket.AF_UNIX)
        assert address_of(v4) == f"127.0.0.1:{v4.getsockname()[1]}"
        assert address_of(v6) == f"[::1]:{v6.getsockname()[1]}"
        assert address_of(local) == local.getsockname()
