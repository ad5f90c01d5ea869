"""A folder over HTTPS: nginx where it is installed, else Python's own server; and curl, which fetches from it.

python -m headrace.bench.web FOLDER ADDRESS PORT CERTIFICATE KEY       serves by Python
"""

from __future__ import annotations

import datetime
import functools
import http.server
import ipaddress
import os
import ssl
import sys
from pathlib import Path
from typing import Final
from urllib.parse import quote

from headrace.bench.process import Child, Command, NotInstalledError, listen
from headrace.bench.sshd import program

LOOPBACK: Final = "127.0.0.1"
NGINX: Final = """\
daemon off;
{user}
worker_processes 2;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
  access_log off;
  sendfile on;
  types {{ }}
  default_type application/octet-stream;
  client_body_temp_path {folder}/t1;
  proxy_temp_path {folder}/t2;
  fastcgi_temp_path {folder}/t3;
  uwsgi_temp_path {folder}/t4;
  scgi_temp_path {folder}/t5;
  server {{
    listen {address}:{port} ssl;
    ssl_certificate {folder}/certificate.pem;
    ssl_certificate_key {folder}/key.pem;
    ssl_protocols TLSv1.3;
    root {source};
  }}
}}
"""


class CurlHttps:
    """`curl` over TLS 1.3, from nginx or else from Python. Files only. folder: an own one, made by `start`."""

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
        program("curl")
        self._folder.mkdir()
        make_certificate(self._folder, self._address)
        where = LOOPBACK if self._address == LOOPBACK else "0.0.0.0"
        try:
            nginx = program("nginx")
        except NotInstalledError:
            nginx = ""

        def command(port: int) -> Command:
            if not nginx:
                files = (str(self._folder / "certificate.pem"), str(self._folder / "key.pem"))
                return Command((sys.executable, "-m", "headrace.bench.web", str(source), where, str(port), *files))
            config = self._folder / "nginx.conf"
            user = "user root;" if os.geteuid() == 0 else ""
            config.write_text(NGINX.format(folder=self._folder, address=where, port=port, source=source, user=user))
            return Command((nginx, "-c", str(config), "-e", str(self._folder / "error.log")))

        self._child, self._port = listen(command, self._folder / "server.log")

    def before_run(self) -> None:
        pass

    def url(self, source_name: str) -> str:
        """Of a file."""
        return f"https://{self._address}:{self._port}/{quote(source_name)}"

    def options(self) -> tuple[str, ...]:
        """That curl needs to trust it and nobody else, and to be quiet."""
        return ("-q", "--silent", "--show-error", "--fail", "--cacert", str(self._folder / "certificate.pem"))

    def command(self, source_name: str, dest: Path) -> Command:
        words = (*self.options(), "--output", str(dest / source_name), self.url(source_name))
        return Command((program("curl"), *words))

    def stop(self) -> None:
        if self._child:
            self._child.end()


def make_certificate(folder: Path, address: str) -> None:
    """folder/certificate.pem and key.pem, for one address, for two days."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "headrace bench")])
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - day)
        .not_valid_after(now + day)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "certificate.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "key.pem").touch(mode=0o600)
    (folder / "key.pem").write_bytes(secret)


def serve(folder: str, address: str, port: str, certificate: str, key: str) -> None:
    """Until it is killed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(certificate, key)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    with http.server.ThreadingHTTPServer((address, int(port)), handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        server.serve_forever()


if __name__ == "__main__":
    serve(*sys.argv[1:])
