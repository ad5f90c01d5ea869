"""Finding shares on the LAN by multicast DNS (RFC 6762) and service discovery over it (RFC 6763).

What is announced is the public group of the code, a port and this machine's addresses: nothing that a person wrote, and
nothing of the secret. Whoever answers in a share's place gets no further than the handshake, which proves the code.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from headrace.errors import HeadraceError, UnreachableError

if TYPE_CHECKING:
    from zeroconf import ServiceInfo, Zeroconf

log = logging.getLogger("headrace.discovery")

SERVICE: Final = "_headrace._tcp.local."
PAUSE: Final = 0.5  # seconds that the import of zeroconf leaves to whatever else starts
SEARCH: Final = 3.0  # seconds without an answer after which a share is not there
STOP_TIMEOUT: Final = 2.0
MAX_FOUND: Final = 256  # shares that one look lists
MAX_ADDRESSES: Final = 16  # of one share

# Why shares were not announced, since the process started: for metrics.
FAILURES: Final[Counter[str]] = Counter()


@dataclass(frozen=True, slots=True)
class Found:
    """A share that announces itself. group: the public one of its code. hosts: addresses, IPv4 first."""

    group: str
    hosts: tuple[str, ...]
    port: int


class Announcer:
    """Announces one share from `start` to `stop`, from a thread of its own. What fails is said once, and counted."""

    def __init__(self, group: str, port: int, bind: str = "") -> None:
        """bind: the only address that the share listens on; empty for all."""
        self._group, self._port, self._bind = group, port, bind
        self._stopping = threading.Event()
        # Not a daemon: an interpreter that ends in the middle of an import crashes.
        self._thread = threading.Thread(target=self._run, name="headrace-announce")

    @property
    def reaches_others(self) -> bool:
        """Not where the share listens on loopback only."""
        return not is_loopback(self._bind)

    def start(self) -> None:
        """Returns at once."""
        if self.reaches_others:
            self._thread.start()

    def stop(self) -> None:
        """Takes the announcement back. May be called again."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(STOP_TIMEOUT)

    def _run(self) -> None:
        if self._stopping.wait(PAUSE):
            return
        try:
            self._announce()
        except (OSError, HeadraceError) as why:  # whatever a network does to it, the share goes on
            FAILURES["announce"] += 1
            log.warning("this share is not announced on the LAN (%s); CODE@HOST:PORT reaches it all the same", why)

    def _announce(self) -> None:
        """Until `stop`."""
        with _opened(self._bind) as zeroconf:
            from zeroconf import Error, ServiceInfo

            try:
                info = ServiceInfo(
                    SERVICE,
                    f"{self._group}.{SERVICE}",
                    port=self._port,
                    parsed_addresses=[self._bind] if self._bind else own_addresses(),
                    server=f"headrace-{self._group}.local.",
                )
                # No probing for others of that name: after a crash the last announcement of this very share is still
                # in the caches, and the group is drawn at random.
                zeroconf.register_service(info, cooperating_responders=True)
            except Error as why:
                raise HeadraceError(f"{type(why).__name__} {why}".strip()) from why
            self._stopping.wait()


def find(group: str, timeout: float = SEARCH) -> Found:
    """The share with this public group. Raises UnreachableError when none answers within `timeout` seconds."""
    hint = "Is it running, in the same network? Multicast may be blocked: then write CODE@HOST:PORT."
    try:
        with _opened() as zeroconf:
            from zeroconf import ServiceInfo

            info = ServiceInfo(SERVICE, f"{group}.{SERVICE}")
            if info.request(zeroconf, timeout * 1000) and (found := _checked(info, group)):
                return found
    except OSError as why:
        raise UnreachableError(f"the LAN cannot be searched ({why.strerror or why})", hint=hint) from why
    raise UnreachableError(f"no share {group} answers on this network", hint=hint)


def browse(seconds: float = SEARCH) -> list[Found]:
    """Every share that answers within `seconds`, by its group. Raises UnreachableError where nobody can be asked."""
    found: dict[str, Found] = {}
    names: set[str] = set()
    try:
        with _opened() as zeroconf:
            from zeroconf import ServiceBrowser, ServiceInfo, ServiceListener

            class Listener(ServiceListener):
                def add_service(self, zc: Zeroconf, type_: str, name: str) -> None:
                    if len(names) < MAX_FOUND:
                        names.add(name)

                def update_service(self, zc: Zeroconf, type_: str, name: str) -> None:
                    self.add_service(zc, type_, name)

                def remove_service(self, zc: Zeroconf, type_: str, name: str) -> None:
                    names.discard(name)

            browser = ServiceBrowser(zeroconf, SERVICE, Listener())
            threading.Event().wait(seconds)
            for name in sorted(names):
                group = name.removesuffix("." + SERVICE)
                info = ServiceInfo(SERVICE, name)
                if (info.load_from_cache(zeroconf) or info.request(zeroconf, 500)) and (one := _checked(info, group)):
                    found[group] = one
            browser.cancel()
    except OSError as why:
        raise UnreachableError(f"the LAN cannot be searched ({why.strerror or why})") from why
    return [found[group] for group in sorted(found)]


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches that address. False for none."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(address).is_loopback
    return False


def own_addresses() -> list[str]:
    """This machine's addresses that others may reach, IPv4 first."""
    import ifaddr

    found: list[str] = []
    for adapter in ifaddr.get_adapters():
        for ip in adapter.ips:
            text = ip.ip if isinstance(ip.ip, str) else ip.ip[0]
            address = ipaddress.ip_address(text)
            if not (address.is_loopback or address.is_unspecified) and text not in found:
                found.append(text)
    return sorted(found, key=lambda text: ":" in text)


def _checked(info: ServiceInfo, group: str) -> Found | None:
    """What an answer says, if that can be a share. It comes from whoever is on the network."""
    from zeroconf import IPVersion

    hosts = [
        host
        for version in (IPVersion.V4Only, IPVersion.V6Only)
        for host in info.parsed_scoped_addresses(version)
        if _plausible(host)
    ]
    if not hosts or not info.port or not group.isascii() or not group.isalnum() or len(group) > 16:
        return None
    return Found(group, tuple(hosts[:MAX_ADDRESSES]), info.port)


def _plausible(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return not (address.is_loopback or address.is_multicast or address.is_unspecified)


@contextlib.contextmanager
def _opened(bind: str = "") -> Iterator[Zeroconf]:
    """A Zeroconf on every interface, or on that of `bind`. Raises OSError, HeadraceError."""
    try:
        from zeroconf import IPVersion, Zeroconf
    except ImportError as why:
        raise HeadraceError(f"the library zeroconf cannot be loaded ({why})") from why
    try:
        zeroconf = Zeroconf(interfaces=[bind]) if bind else Zeroconf(ip_version=IPVersion.All)
    except OSError:
        if bind:
            raise
        log.debug("no multicast over IPv6 here; IPv4 alone")
        zeroconf = Zeroconf(ip_version=IPVersion.V4Only)
    try:
        yield zeroconf
    finally:
        zeroconf.close()
