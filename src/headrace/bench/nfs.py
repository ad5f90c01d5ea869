"""NFS by nfs-ganesha, read by libnfs's nfs-cp: both in user space, so that no kernel has to have NFS. Not encrypted."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Final
from urllib.parse import quote

from headrace.bench.process import Child, Command, listen
from headrace.bench.sshd import program

LOOPBACK: Final = "127.0.0.1"
EXPORT: Final = "/bench"
CONFIG: Final = """\
NFS_CORE_PARAM {{
  Protocols = 4; NFS_Port = {port}; Bind_addr = {address};
  Enable_NLM = false; Enable_RQUOTA = false; mount_path_pseudo = true;
}}
NFSv4 {{ Graceless = true; Grace_Period = 1; RecoveryBackend = fs; RecoveryRoot = {folder}/recovery; }}
EXPORT {{
  Export_Id = 1; Path = {source}; Pseudo = {export}; Access_Type = RO; Squash = No_Root_Squash;
  SecType = sys; Protocols = 4; Transports = TCP; FSAL {{ Name = VFS; }}
}}
"""


class NfsGanesha:
    """NFS 4, one file. Needs root, as ganesha opens files by their handles. folder: an own one, made by `start`."""

    def __init__(self, name: str, folder: Path, address: str = LOOPBACK) -> None:
        self.name = name
        self._folder = folder
        self._address = address
        self._child: Child | None = None
        self._port = 0

    @property
    def server(self) -> int | None:
        return self._child.pid if self._child else None

    def start(self, source: Path) -> None:
        ganesha = program("ganesha.nfsd")
        program("nfs-cp")
        (self._folder / "recovery").mkdir(parents=True)
        config = self._folder / "ganesha.conf"
        where = LOOPBACK if self._address == LOOPBACK else "0.0.0.0"

        def command(port: int) -> Command:
            config.write_text(
                CONFIG.format(port=port, address=where, folder=self._folder, source=source, export=EXPORT)
            )
            files = ("-L", str(self._folder / "ganesha.log"), "-p", str(self._folder / "pid"))
            return Command((ganesha, "-F", "-f", str(config), *files))

        self._child, self._port = listen(command, self._folder / "server.log")

    def before_run(self) -> None:
        pass

    def command(self, source_name: str, dest: Path) -> Command:
        where = f"nfs://{self._address}{EXPORT}/{quote(source_name)}?version=4&nfsport={self._port}"
        return Command((program("nfs-cp"), where, str(dest / source_name)))

    def stop(self) -> None:
        if self._child:
            self._child.end(signal.SIGTERM)
