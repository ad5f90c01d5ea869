"""An sshd of our own: its host key, its configuration, a client key. Nothing of the user's ssh is used or changed."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

from headrace.bench.process import Child, Command, NotInstalledError, environment, listen

PRIVILEGE_SEPARATION: Final = Path("/run/sshd")  # Debian's sshd wants it when root starts it
SFTP_SERVERS: Final = ("/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server", "/usr/libexec/sftp-server")

CONFIG: Final = """\
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/client_key.pub
Subsystem sftp {sftp}
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
UsePAM no
PidFile none
LogLevel ERROR
MaxStartups 100
"""


def program(name: str) -> str:
    """The whole path of a program, also of those that only root has on PATH. Raises NotInstalledError."""
    path = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"]))
    if not path:
        raise NotInstalledError(name)
    return path


class Sshd:
    """Listens on loopback from `start` to `stop`. folder: an own one, existing."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._child: Child | None = None
        self._made_separation = False
        self._port = 0

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child else None

    @property
    def login(self) -> str:
        """USER@ADDRESS for ssh, scp and rsync."""
        return f"{getpass.getuser()}@127.0.0.1"

    @property
    def options(self) -> list[str]:
        """Options that ssh and scp both take, to come here with our key and with no settings of the user's."""
        return [
            *("-F", "none", "-i", f"{self._folder}/client_key"),
            *("-o", f"Port={self._port}"),
            *("-o", f"UserKnownHostsFile={self._folder}/known_hosts"),
            *("-o", "GlobalKnownHostsFile=none"),
            *("-o", "StrictHostKeyChecking=yes"),
            *("-o", "IdentitiesOnly=yes"),
            *("-o", "BatchMode=yes"),
            *("-o", "LogLevel=ERROR"),
        ]

    def start(self) -> None:
        """Raises NotInstalledError, BenchError."""
        sshd = program("sshd")
        self._make_keys(program("ssh-keygen"))
        if os.geteuid() == 0 and not PRIVILEGE_SEPARATION.exists():
            PRIVILEGE_SEPARATION.mkdir(mode=0o755)
            self._made_separation = True

        def command(port: int) -> Command:
            self._configure(port)
            return Command((sshd, "-D", "-e", "-f", f"{self._folder}/sshd_config"))

        self._child, self._port = listen(command, self._folder / "sshd.log")

    def stop(self) -> None:
        if self._child:
            self._child.end()
        if self._made_separation:
            self._made_separation = False
            with contextlib.suppress(OSError):  # another sshd has come to use it
                PRIVILEGE_SEPARATION.rmdir()

    def _make_keys(self, keygen: str) -> None:
        for name in ("host_key", "client_key"):
            command = [keygen, "-q", "-t", "ed25519", "-N", "", "-C", "headrace bench", "-f", f"{self._folder}/{name}"]
            subprocess.run(command, check=True, stdin=subprocess.DEVNULL, env=environment())

    def _configure(self, port: int) -> None:
        sftp = next((path for path in SFTP_SERVERS if Path(path).exists()), "internal-sftp")
        config = CONFIG.format(port=port, folder=self._folder, sftp=sftp)
        (self._folder / "sshd_config").write_text(config)
        key = (self._folder / "host_key.pub").read_text()
        (self._folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {key}")
