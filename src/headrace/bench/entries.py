"""Who takes part: headrace, the peers and the limits by name, on loopback or across a link."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from headrace.bench.far import LOOPBACK, FarSshd, far_rsync_daemon
from headrace.bench.mountcopy import MountCopy
from headrace.bench.mounts import Sshfs
from headrace.bench.nfs import NfsGanesha
from headrace.bench.peers import (
    FAST_CIPHER,
    Cp,
    Headrace,
    Iperf3,
    Loopback,
    Peer,
    RcloneCopy,
    RsyncDaemon,
    RsyncOverSsh,
    Scp,
)
from headrace.bench.results import Kind
from headrace.bench.web import CurlHttps
from headrace.bench.wormhole import Wormhole


@dataclass(frozen=True, slots=True)
class Entry:
    """make: of (a folder that does not exist yet, the server's address). trees: whether it copies folders. far:
    whether it works across a link. many: whether several copies at once do."""

    name: str
    kind: Kind
    make: Callable[[Path, str], Peer]
    trees: bool = True
    far: bool = True
    many: bool = True


def headrace(name: str, *options: str, share: Sequence[str] = (), cold: bool = False, changed: bool = False) -> Entry:
    """One row of headrace's own. options: of get. share: of the share."""
    get = (*options, *(("--on-exist", "overwrite") if changed else ()))

    def make(folder: Path, address: str) -> Peer:
        binding = () if address == LOOPBACK else ("--bind", address)
        return Headrace(name, folder, cold=cold, options=get, share_options=(*share, *binding))

    return Entry(name, "headrace", make)


def _over_ssh(made: Scp | RsyncOverSsh | RcloneCopy, folder: Path, address: str) -> Peer:
    return made if address == LOOPBACK else made.by(FarSshd(folder, address))


PEERS: Final = (
    Entry("scp", "peer", lambda folder, at: _over_ssh(Scp("scp", folder), folder, at)),
    Entry("scp-gcm", "peer", lambda folder, at: _over_ssh(Scp("scp-gcm", folder, FAST_CIPHER), folder, at)),
    Entry("rsync-ssh", "peer", lambda folder, at: _over_ssh(RsyncOverSsh("rsync-ssh", folder), folder, at)),
    Entry(
        "rsync-daemon",
        "peer",
        lambda folder, at: (
            RsyncDaemon("rsync-daemon", folder) if at == LOOPBACK else far_rsync_daemon("rsync-daemon", folder)
        ),
    ),
    Entry("curl-https", "peer", lambda folder, at: CurlHttps("curl-https", folder, at), trees=False),
    Entry(
        "sshfs",
        "peer",
        lambda folder, at: MountCopy("sshfs", folder, Sshfs("sshfs", folder.with_name("sshfs-server"), at)),
        far=False,
    ),
    Entry("rclone", "peer", lambda folder, at: _over_ssh(RcloneCopy("rclone", folder), folder, at), far=False),
    Entry("nfs-ganesha", "peer", lambda folder, at: NfsGanesha("nfs-ganesha", folder, at), trees=False),
    Entry("wormhole", "peer", lambda folder, at: Wormhole("wormhole", folder), trees=False, far=False),
)
LIMITS: Final = (
    Entry("cp", "limit", lambda folder, at: Cp("cp"), far=False),
    Entry("sendfile", "limit", lambda folder, at: Loopback("sendfile", folder, at), trees=False),
    # Its server takes one client at a time, and what it says is believed, as it makes no copy.
    Entry("iperf3", "limit", lambda folder, at: Iperf3("iperf3", folder, at), trees=False, far=False, many=False),
)
NAMES: Final = tuple(entry.name for entry in PEERS)
