"""nginx with docs/nginx.conf, and a service that records the requests which nginx forwards."""

import asyncio
import json
import os
import re
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple

import httpx
import trustme

from tests.servers import Server, free_port, program, running
from tests.support import until

EXAMPLE: Final = (Path(__file__).parents[1] / "docs/nginx.conf").read_text()
NAME: Final = "tasks.example.com"
OK: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]"
# All clients of these tests come from one address.
NO_RATE_LIMIT: Final = {"rate=20r/s": "rate=100000r/s", "burst=40": "burst=100000"}

# The rest of a configuration, with directives in its `http` block that could interfere.
MAIN: Final = """
{user}
daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/main.log;
events {{}}
http {{
    gzip on;
    gzip_types *;
    gzip_proxied any;
    access_log {directory}/main-access.log;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    scgi_temp_path {directory}/scgi;
    uwsgi_temp_path {directory}/uwsgi;
    include {directory}/site;
}}
"""


# The lines of the example for a service below a path, by the lines that they replace.
BELOW_A_PATH: Final = {line: other for other, line in re.findall(r"# With ROOT_PATH=/svc: (.+)\n *(.+)", EXAMPLE)}


class Upstream:
    """Stands in for a service that fails. It records the requests, sends `answers` on each connection, and closes the
    connection after the next request.
    """

    def __init__(self, *answers: bytes) -> None:
        self.arrived: list[bytes] = []
        self.reached = asyncio.Event()
        self.released = asyncio.Event()
        self.released.set()
        self._answers = answers

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            for answer in self._answers:
                await self._receive(reader)
                writer.write(answer)
            await self._receive(reader)
        writer.close()

    async def _receive(self, reader: asyncio.StreamReader) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        self.arrived.append(head + await reader.readexactly(int(length[1]) if length else 0))
        self.reached.set()
        await self.released.wait()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self, "127.0.0.1")
        try:
            yield "http://{}:{}".format(*server.sockets[0].getsockname())
        finally:
            self.released.set()
            server.close()


class Proxy(NamedTuple):
    """A running nginx."""

    directory: Path
    port: int
    plain_port: int
    trust: ssl.SSLContext

    @property
    def command(self) -> list[str]:
        return [program("nginx"), "-p", str(self.directory), "-c", "main", "-e", str(self.directory / "start.log")]

    def client(self) -> httpx.AsyncClient:
        url = f"https://127.0.0.1:{self.port}"
        return httpx.AsyncClient(base_url=url, verify=self.trust, headers={"Host": NAME}, timeout=30)

    async def exchange(self, request: bytes, name: str = NAME) -> tuple[bytes, bytes]:
        """Send these bytes, to this name in TLS. Returns head and body of the only reply, empty if there is none."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=self.trust, server_hostname=name)
        writer.write(request)
        content = b""
        async with asyncio.timeout(30):
            with suppress(ConnectionError):
                content = await reader.read()
        writer.close()
        head, _, body = content.partition(b"\r\n\r\n")
        return head, body

    def logs(self) -> str:
        """The contents of all logs of nginx."""
        return "".join(path.read_text() for path in self.directory.glob("*.log"))

    async def logged(self, **members: str) -> dict[str, str]:
        """The only line with these members. nginx writes a line after the reply."""

        def lines() -> list[dict[str, str]]:
            whole = (self.directory / "tasks-access.log").read_text().rpartition("\n")[0]
            parsed = [json.loads(line) for line in whole.splitlines()]
            return [line for line in parsed if line.items() >= members.items()]

        await until(lines)
        [line] = lines()
        return line


@asynccontextmanager
async def nginx(
    directory: Path, service: str, changes: Mapping[str, str] = MappingProxyType({})
) -> AsyncIterator[Proxy]:
    """Yields an nginx in front of the address. It uses docs/nginx.conf with some words replaced."""
    authority, trust = trustme.CA(), ssl.create_default_context()
    authority.configure_trust(trust)
    authority.issue_cert("127.0.0.1", "localhost", NAME).private_key_and_cert_chain_pem.write_to_path(
        str(directory / "tls.pem")
    )
    proxy = Proxy(directory, free_port(), free_port(), trust)
    _write_configuration(proxy, service, {**NO_RATE_LIMIT, **changes})
    server = Server(directory, {}, *proxy.command)
    server.port = proxy.plain_port
    with running(server):
        try:
            yield proxy
        finally:
            server.stop()  # a killed nginx would leave its worker behind


def _write_configuration(proxy: Proxy, service: str, changes: Mapping[str, str]) -> None:
    """Write the example with other ports, paths and certificates, so that several can run on one machine."""
    everywhere = {
        "    listen [::]:80;\n": "",
        "    listen [::]:443 ssl http2;\n": "",
        "listen 80;": f"listen 127.0.0.1:{proxy.plain_port};",
        "listen 443 ": f"listen 127.0.0.1:{proxy.port} ",
        "server 127.0.0.1:8000;": f"server {service.removeprefix('http://')};",
        f"/etc/letsencrypt/live/{NAME}/fullchain.pem": f"{proxy.directory}/tls.pem",
        f"/etc/letsencrypt/live/{NAME}/privkey.pem": f"{proxy.directory}/tls.pem",
        "/var/log/nginx/": f"{proxy.directory}/",
    }
    site = EXAMPLE
    for words, others in {**everywhere, **changes}.items():
        assert words in site
        site = site.replace(words, others)
    (proxy.directory / "site").write_text(site)
    user = "user root;" if os.geteuid() == 0 else ""  # only root may set it, and has to
    (proxy.directory / "main").write_text(MAIN.format(directory=proxy.directory, user=user))
