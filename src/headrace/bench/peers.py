"""Programs that copy, behind one face: headrace, scp, rsync, and the limits. Servers listen on loopback only."""

from __future__ import annotations

import json
import os
import pwd
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Protocol, Self

from headrace.bench import loopback
from headrace.bench.process import (
    POLL,
    READY_TIMEOUT,
    BenchError,
    Child,
    Command,
    environment,
    listen,
    tail,
)
from headrace.bench.sshd import Sshd, program

HEADRACE: Final = (sys.executable, "-m", "headrace")
FAST_CIPHER: Final = "aes128-gcm@openssh.com"


class Peer(Protocol):
    """One way to copy. `stop` always follows `start`, also when that failed, and may be called again."""

    name: str

    @property
    def server(self) -> int | None:
        """The pid of the serving process, where there is one."""

    def start(self, source: Path) -> None:
        """Makes ready to give out what is in the folder `source`. Raises NotInstalledError, BenchError."""

    def before_run(self) -> None:
        """What has to happen before each run and is no part of it."""

    def command(self, source_name: str, dest: Path) -> Command:
        """Copies the file or folder `source_name` to dest/source_name; `dest` is an existing folder."""

    def stop(self) -> None:
        """Ends every process and leaves only files in the peer's own folder."""


class Headrace:
    """`headrace share` and `headrace get`. folder: an own one, made by `start`.

    cold: before each run the share is started anew, so that it has hashed nothing, and the client forgets everything,
    so that it pairs. Otherwise both stay as the run before left them, but for the client's chunk index.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        *,
        cold: bool = False,
        options: Sequence[str] = (),
        share_options: Sequence[str] = (),
    ) -> None:
        self.name = name
        self._folder = folder
        self._cold = cold
        self.options = tuple(options)  # of get
        self._share_options = tuple(share_options)
        self.launcher: tuple[str, ...] = ()  # what the share is started by, strace say
        self._source = Path()
        self._child: Child | None = None
        self._ready: dict[str, Any] = {}

    @property
    def server(self) -> int | None:
        return self._child.pid if self._child else None

    @property
    def address(self) -> str:
        """HOST:PORT of the share."""
        return f"127.0.0.1:{self._ready['port']}"

    @property
    def client_environment(self) -> dict[str, str]:
        """With the code and the client's own state."""
        return environment() | {
            "HEADRACE_HOME": str(self._folder / "client"),
            "HEADRACE_CODE": str(self._ready["code"]),
        }

    def start(self, source: Path) -> None:
        self._source = source
        self._folder.mkdir()
        self._share()

    def before_run(self) -> None:
        client = self._folder / "client"
        if self._cold:
            self.stop()
            shutil.rmtree(client, ignore_errors=True)
            self._share()
        for path in client.glob("index.*"):  # what is here already would not be fetched
            path.unlink()

    def command(self, source_name: str, dest: Path) -> Command:
        target = f"{self.address}/{source_name}"
        argv = (*HEADRACE, "get", target, str(dest / source_name), "--quiet", *self.options)
        return Command(argv, self.client_environment)

    def stop(self) -> None:
        if self._child:
            self._child.end(signal.SIGINT)

    def _share(self) -> None:
        events, log = self._folder / "events.ndjson", self._folder / "share.log"
        argv = (
            *self.launcher,
            *HEADRACE,
            "share",
            str(self._source),
            "--bind",
            "127.0.0.1",
            "--port",
            "0",
            "--json",
            *self._share_options,
        )
        env = environment() | {"HEADRACE_HOME": str(self._folder / "host")}
        self._child = child = Child(Command(argv, env), events, log)
        deadline = time.monotonic() + READY_TIMEOUT
        while time.monotonic() < deadline:
            ended = child.ended
            for line in events.read_text().splitlines(keepends=True):
                event = json.loads(line) if line.endswith("\n") else {}
                if event.get("event") == "ready":
                    self._ready = event
                    return
            if ended:
                raise BenchError(f"headrace share ended at once: {tail(log)}")
            time.sleep(POLL)
        raise BenchError(f"headrace share was not ready within {READY_TIMEOUT:.0f} s: {tail(log)}")


class HeadracePut(Headrace):
    """`headrace share --write` of the folder that everything is copied in, and `headrace put` into it."""

    def start(self, source: Path) -> None:
        self._sources = source
        super().start(self._folder.parent)

    def before_run(self) -> None:
        """Nothing: what the host knows of earlier copies are files that are gone."""

    def command(self, source_name: str, dest: Path) -> Command:
        target = f"{self.address}/{dest.relative_to(self._folder.parent)}/{source_name}"
        argv = (*HEADRACE, "put", str(self._sources / source_name), target, "--quiet", *self.options)
        return Command(argv, self.client_environment)


class _OverSsh:
    """What scp and rsync over ssh share: an sshd."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self._folder = folder
        self._sshd = Sshd(folder)
        self._source = Path()

    @property
    def server(self) -> int | None:
        return self._sshd.pid

    def start(self, source: Path) -> None:
        self._source = source
        self._folder.mkdir()
        self._sshd.start()

    @property
    def sshd(self) -> Sshd:
        """The one that serves it."""
        return self._sshd

    def by(self, sshd: Sshd) -> Self:
        """Through another sshd, before `start`."""
        self._sshd = sshd
        return self

    def before_run(self) -> None:
        pass

    def stop(self) -> None:
        self._sshd.stop()


class Scp(_OverSsh):
    """cipher: None leaves the choice to scp and sshd."""

    def __init__(self, name: str, folder: Path, cipher: str | None = None) -> None:
        super().__init__(name, folder)
        self._cipher = cipher

    def start(self, source: Path) -> None:
        program("scp")
        super().start(source)

    def command(self, source_name: str, dest: Path) -> Command:
        cipher = ("-c", self._cipher) if self._cipher else ()
        where = f"{self._sshd.login}:{self._source / source_name}"
        return Command((program("scp"), "-q", "-r", "-p", *cipher, *self._sshd.options, where, str(dest)))


class RsyncOverSsh(_OverSsh):
    """`rsync --archive` with ssh's own choice of cipher."""

    def start(self, source: Path) -> None:
        program("rsync")
        super().start(source)

    def command(self, source_name: str, dest: Path) -> Command:
        shell = shlex.join([program("ssh"), *self._sshd.options])
        where = f"{self._sshd.login}:{self._source / source_name}"
        return Command((program("rsync"), "--archive", "--rsh", shell, where, f"{dest}/"))


class RsyncDaemon:
    """rsync's own daemon: no encryption."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self._folder = folder
        self._child: Child | None = None
        self._port = 0

    @property
    def server(self) -> int | None:
        return self._child.pid if self._child else None

    def start(self, source: Path) -> None:
        rsync = program("rsync")
        self._folder.mkdir()
        config, log = self._folder / "rsyncd.conf", self._folder / "rsyncd.log"
        config.write_text(self._config(source))

        def command(port: int) -> Command:
            where = ("--address", "127.0.0.1", "--port", str(port))
            return Command((rsync, "--daemon", "--no-detach", "--config", str(config), *where))

        self._child, self._port = listen(command, log)

    def _config(self, source: Path) -> str:
        lines = ["use chroot = no", "reverse lookup = no", f"log file = {self._folder / 'transfers.log'}"]
        if os.geteuid() == 0:  # else it would read as `nobody`
            lines += [f"uid = {pwd.getpwuid(0).pw_name}", "gid = 0"]
        return "\n".join([*lines, "[bench]", f"path = {source}", "read only = yes", ""])

    def before_run(self) -> None:
        pass

    def command(self, source_name: str, dest: Path) -> Command:
        where = f"rsync://127.0.0.1:{self._port}/bench/{source_name}"
        return Command((program("rsync"), "--archive", where, f"{dest}/"))

    def stop(self) -> None:
        if self._child:
            self._child.end()


class Cp:
    """A limit: one local copy, no network."""

    server = None

    def __init__(self, name: str) -> None:
        self.name = name
        self._source = Path()

    def start(self, source: Path) -> None:
        program("cp")
        self._source = source

    def before_run(self) -> None:
        pass

    def command(self, source_name: str, dest: Path) -> Command:
        return Command((program("cp"), "-a", str(self._source / source_name), str(dest)))

    def stop(self) -> None:
        pass


class Loopback:
    """A limit: sendfile to recv_into between two Python processes. Files only."""

    def __init__(self, name: str, folder: Path, address: str = "127.0.0.1") -> None:
        self.name = name
        self._folder = folder
        self._address = address
        self._child: Child | None = None
        self._port = ""

    @property
    def server(self) -> int | None:
        return self._child.pid if self._child else None

    def start(self, source: Path) -> None:
        self._folder.mkdir()
        said, log = self._folder / "port", self._folder / "log"
        argv = (sys.executable, loopback.__file__, "serve", str(source), self._address)
        self._child = Child(Command(argv), said, log)
        deadline = time.monotonic() + READY_TIMEOUT
        while not said.read_text().endswith("\n"):
            if self._child.ended or time.monotonic() > deadline:
                raise BenchError(f"the loopback server did not start: {tail(log)}")
            time.sleep(POLL)
        self._port = said.read_text().strip()

    def before_run(self) -> None:
        pass

    def command(self, source_name: str, dest: Path) -> Command:
        destination = str(dest / source_name)
        return Command((sys.executable, loopback.__file__, "get", self._address, self._port, source_name, destination))

    def stop(self) -> None:
        if self._child:
            self._child.end()


class Iperf3:
    """A limit: what iperf3 carries from memory to memory. It copies no file, so there is none to check.

    Not in a line with the others: its client here receives, as theirs do (`--reverse`).
    """

    makes_no_copy = True

    def __init__(self, name: str, folder: Path, address: str = "127.0.0.1") -> None:
        self.name = name
        self._folder = folder
        self._address = address
        self._source = Path()
        self._child: Child | None = None
        self._port = 0

    @property
    def server(self) -> int | None:
        return self._child.pid if self._child else None

    def start(self, source: Path) -> None:
        iperf3 = program("iperf3")
        self._source = source
        self._folder.mkdir()

        def command(port: int) -> Command:
            return Command((iperf3, "--server", "--bind", self._address, "--port", str(port)))

        self._child, self._port = listen(command, self._folder / "server.log", self._address)

    def before_run(self) -> None:
        pass

    def command(self, source_name: str, dest: Path) -> Command:
        size = (self._source / source_name).stat().st_size
        where = ("--client", self._address, "--port", str(self._port))
        return Command((program("iperf3"), *where, "--reverse", "--bytes", str(size)))

    def stop(self) -> None:
        if self._child:
            self._child.end()


class RcloneCopy(_OverSsh):
    """`rclone copy` over sftp, with rclone's defaults; for trees 16 transfers at once, and without a
    checksum of each file, which would start a program for it on the other end."""

    def start(self, source: Path) -> None:
        program("rclone")
        super().start(source)

    def command(self, source_name: str, dest: Path) -> Command:
        source = self._source / source_name
        words = rclone_settings(self._sshd, self._folder)
        if source.is_dir():
            words = [*words, "--transfers=16", "--checkers=16", "--sftp-disable-hashcheck"]
            return Command((program("rclone"), "copy", f":sftp:{source}", str(dest / source_name), *words))
        return Command((program("rclone"), "copyto", f":sftp:{source}", str(dest / source_name), *words))


def rclone_settings(sshd: Sshd, folder: Path) -> list[str]:
    """Options for rclone to find that sshd, and no settings of the user's."""
    settings = dict(line.split(" ", 1) for line in ssh_settings(sshd.options))
    options = {
        "config": "",  # no file
        "cache-dir": str(folder / "cache"),
        "sftp-host": sshd.login.partition("@")[2],
        "sftp-port": settings["Port"],
        "sftp-user": sshd.login.partition("@")[0],
        "sftp-key-file": settings["IdentityFile"],
        "sftp-known-hosts-file": settings["UserKnownHostsFile"],
    }
    return [f"--{name}={value}" for name, value in options.items()]


def ssh_settings(options: Sequence[str]) -> list[str]:
    """ssh's command line as lines of its configuration."""
    lines = []
    for flag, value in zip(options[::2], options[1::2], strict=True):
        if flag == "-i":
            lines.append(f"IdentityFile {value}")
        elif flag == "-o":
            lines.append(value.replace("=", " ", 1))
    return lines
