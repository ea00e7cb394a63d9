"""The server over a real socket: what it serves, what it refuses, and what does not reach a file."""

from __future__ import annotations

import http.client
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lossscope.landscape.storage.run_store import RunStore
from lossscope.reports.serving import server as module, site as pages
from lossscope.reports.serving.server import Server
from lossscope.reports.serving.site import PAGES, Site

HOSTILE = "<script>alert(1)</script>&\"'{{7*7}}"


@pytest.fixture
def folder(demo_folder: Path, tmp_path: Path) -> Path:
    """Return a folder of four runs."""
    return Path(shutil.copytree(demo_folder, tmp_path / "runs"))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Serve pages without figures, for tests of everything else."""
    from lossscope.landscape.run import open_runs
    from lossscope.reports.render.rendering import render

    def text(kind: str, paths: list[Path]) -> str:
        return f"<!doctype html><pre>{kind}{render(pages._report('entropy', open_runs(paths[0])), 'json')}</pre>"

    monkeypatch.setattr(pages, "_report_html", text)


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    """Serve the folder on a free port."""
    with Server(Site(folder), 0) as found:
        thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield found
        found.shutdown()
        thread.join()


def ask(
    server: Server, target: str = "/", method: str = "GET", **headers: str
) -> tuple[http.client.HTTPResponse, bytes]:
    """Send a request as it is given and return the response with its body."""
    with closing(http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)) as connection:
        connection.putrequest(method, target, skip_host="Host" in headers, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders()
        response = connection.getresponse()
        return response, response.read()


def raw(server: Server, request: bytes) -> bytes:
    """Send bytes and return the answer up to its end."""
    with closing(socket.create_connection(("127.0.0.1", server.server_port), timeout=60)) as connection:
        connection.sendall(request)
        parts = []
        try:
            while part := connection.recv(65536):
                parts.append(part)
        except ConnectionResetError:
            pass
    return b"".join(parts)


def _trickle(connection: socket.socket) -> None:
    """Send a byte at a time until the other side ends the connection."""
    while True:
        connection.sendall(b"G")
        time.sleep(0.05)


class Links(HTMLParser):
    """Addresses of the links of a page, and its tags."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: list[str] = []
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.found += [value for name, value in attributes if name == "href" and value]


@pytest.mark.usefixtures("quick")
def test_the_index_leads_to_every_report_of_every_run_and_of_all(server: Server, folder: Path) -> None:
    response, page = ask(server)
    assert response.status == 200
    links = Links(page).found
    assert {link.split("/")[1] for link in links} == set(PAGES)
    assert len(links) == len(PAGES) * (1 + len(list(folder.iterdir())))
    for link in links[:: len(PAGES) - 1]:
        response, page = ask(server, link)
        assert response.status == 200
        assert page.startswith(b"<!doctype html>")


def test_a_run_that_is_the_folder_is_served(folder: Path) -> None:
    site = Site(folder / "ars2-base-s0")
    assert site.check() == 1
    assert site.report("sharpness", b"") is not None


@pytest.mark.usefixtures("quick")
def test_head_is_get_without_a_body(server: Server) -> None:
    for target in ("/", "/entropy/ars2-base-s0", "/nothing"):
        get, body = ask(server, target)
        head, nothing = ask(server, target, "HEAD")
        assert (head.status, nothing) == (get.status, b"")
        assert head.headers["Content-Length"] == get.headers["Content-Length"] == str(len(body))


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "BREW"])
def test_other_methods_are_not_allowed(server: Server, method: str) -> None:
    response, _ = ask(server, "/", method)
    assert response.status == 405
    assert response.headers["Allow"] == "GET, HEAD"


OTHERS = (
    *("evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "localhost.evil.example:{port}"),
    *("0.0.0.0:{port}", "127.0.0.1:{port}@evil.example", "[::]:{port}", "", "localhost:{port}, evil.example"),
)


@pytest.mark.parametrize("host", OTHERS)
def test_a_request_for_another_host_is_refused(server: Server, host: str) -> None:
    response, body = ask(server, "/", Host=host.format(port=server.server_port))
    assert response.status == 403
    assert b"<" not in body


@pytest.mark.parametrize("host", ["127.0.0.1:{port}", "localhost:{port}", "[::1]:{port}", "LOCALHOST:{port}"])
def test_a_request_for_this_machine_is_served(server: Server, host: str) -> None:
    assert ask(server, "/", Host=host.format(port=server.server_port))[0].status == 200


def test_an_address_with_a_host_of_its_own_is_no_page(server: Server) -> None:
    own = f"127.0.0.1:{server.server_port}"
    for target in (f"http://{own}/", "http://evil.example/"):
        assert raw(server, f"GET {target} HTTP/1.1\r\nHost: {own}\r\n\r\n".encode()).startswith(b"HTTP/1.0 404")


def test_a_request_without_a_host_or_with_two_is_refused(server: Server) -> None:
    own = f"Host: 127.0.0.1:{server.server_port}\r\n"
    assert raw(server, f"GET / HTTP/1.1\r\n{own}\r\n".encode()).startswith(b"HTTP/1.0 200")
    for lines in ("", own + "Host: evil.example\r\n", own * 2):
        assert raw(server, f"GET / HTTP/1.1\r\n{lines}\r\n".encode()).startswith(b"HTTP/1.0 403")
    assert b"html" not in raw(server, b"GET /\r\n\r\n")


TARGETS = (
    *("/overview/../../secret", "/overview/..%2f..%2fsecret", "/overview/%2e%2e/secret", "/overview/.%2e/secret"),
    *("/overview/%252e%252e%252fsecret", "/overview/%c0%ae%c0%ae/secret", "/overview/..\\..\\secret", "/../secret"),
    *("/overview//etc/passwd", "/overview/%2fetc%2fpasswd", "/overview/%00", "/overview/%ff", "//secret/", "secret"),
    *("/overview/ars2-base-s0/run.json", "/overview/ars2-base-s0/", "/overview/./ars2-base-s0", "/run.json", "*"),
    "/nothing/ars2-base-s0",
)


@pytest.mark.parametrize("target", TARGETS)
def test_no_address_leads_to_a_path(server: Server, folder: Path, target: str) -> None:
    shutil.copytree(folder / "ars2-base-s0", folder.parent / "secret")
    response, body = ask(server, target)
    assert response.status == 404
    assert b"<" not in body


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("place", ["run", "above", "run.json", "steps.parquet", "journal"])
def test_no_link_is_followed_out_of_the_folder(server: Server, folder: Path, place: str) -> None:
    outside = Path(shutil.copytree(folder / "ars2-base-s0", folder.parent / "elsewhere" / "hidden-name"))
    (outside / "run.json").write_text((outside / "run.json").read_text().replace("ars2-base", "hidden-arm"))
    name = "linked"
    if place == "run":
        (folder / name).symlink_to(outside)
    elif place == "above":
        (folder / name).symlink_to(outside.parent)
        name = "linked/hidden-name"
    else:
        shutil.copytree(folder / "ars2-base-s0", folder / name)
        shutil.rmtree(folder / name / place, ignore_errors=True)
        (folder / name / place).unlink(missing_ok=True)
        (outside / "journal").mkdir(exist_ok=True)
        (folder / name / place).symlink_to(outside / place)
    for kind in ("overview", "all"):
        response, body = ask(server, f"/{kind}/{name}")
        assert response.status == 500
        assert b"is a link out of the folder" in body
    response, body = ask(server)
    assert response.status == 200
    assert b"is a link out of the folder" in body
    assert b"hidden-arm" not in body
    assert ask(server, "/sharpness/ars2-base-s0")[0].status == 200


@pytest.mark.usefixtures("quick")
def test_links_inside_the_folder_and_of_checkpoints_are_followed(server: Server, folder: Path, tmp_path: Path) -> None:
    (folder / "latest").symlink_to(folder / "ars2-base-s0")
    (tmp_path / "disk").mkdir()
    (folder / "ars2-base-s0" / "checkpoints").symlink_to(tmp_path / "disk")
    assert ask(server, "/sharpness/latest")[0].status == 200


def test_hostile_names_are_inert(server: Server, folder: Path) -> None:
    shutil.copytree(folder / "ars2-base-s0", folder / HOSTILE.replace("/", "\N{DIVISION SLASH}"))
    response, page = ask(server)
    assert response.status == 200
    links = Links(page)
    assert "script" not in links.tags
    assert b"49" not in page.split(b"alert", 1)[1][:60]
    (own,) = [link for link in links.found if "alert" in link and link.startswith("/sharpness/")]
    response, page = ask(server, own)
    assert response.status == 200
    assert b"<script>alert" not in page


@pytest.mark.usefixtures("quick")
def test_every_answer_has_its_policy_and_is_not_guessed_or_kept(server: Server) -> None:
    for target in ("/", "/overview/ars2-base-s0", "/nothing"):
        response, body = ask(server, target)
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Cache-Control"] == "no-cache"
        assert response.headers["Cross-Origin-Resource-Policy"] == "same-origin"
        policy = response.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'")
        assert policy.endswith("frame-ancestors 'none'")
        assert "http:" not in policy
        assert "*" not in policy
        assert response.headers["Server"] == "lossscope"
        assert body


def test_the_policy_of_a_page_is_the_one_it_names_itself() -> None:
    policy = "default-src &#39;none&#39;; script-src &#39;sha256-x&#39;"
    meta = f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    page = pages.Page(meta, "tag", 0.0, None)
    assert page.policy == "default-src 'none'; script-src 'sha256-x'; frame-ancestors 'none'"


@pytest.mark.usefixtures("quick")
def test_a_page_is_made_again_when_its_files_change_and_only_then(server: Server, folder: Path, monkeypatch) -> None:
    made: list[str] = []
    report = pages._report_html
    monkeypatch.setattr(pages, "_report_html", lambda kind, paths: made.append(kind) or report(kind, paths))
    target, run = "/sharpness/ars2-base-s0", folder / "ars2-base-s0"
    first, body = ask(server, target)
    again, nothing = ask(server, target, If_None_Match=first.headers["ETag"])
    assert (again.status, nothing, made) == (304, b"", ["sharpness"])
    assert ask(server, target)[1] == body
    store = RunStore.resume(run, 40)
    try:
        store.append("steps", {"step": 41, "loss": 0.5})
        store.flush()
        live, changed = ask(server, target, If_None_Match=first.headers["ETag"])
        assert live.status == 200
        assert changed != body
        assert int(live.headers["Refresh"] or 0) >= 5
        assert first.headers["Refresh"] is None
        store.append("steps", {"step": 42, "loss": 0.5})
        store.flush()
        assert ask(server, target, If_None_Match=live.headers["ETag"])[0].status == 200
    finally:
        store.close("finished", "the loop ended")
    ended, _ = ask(server, target)
    assert ended.headers["Refresh"] is None
    assert made == ["sharpness"] * 4


@pytest.mark.usefixtures("quick")
def test_a_run_that_crashes_without_a_change_of_a_file_changes_its_page(server: Server, folder: Path) -> None:
    store = RunStore.create(folder / "live", {"arm": "live"})
    store.append("steps", {"step": 1, "loss": 0.5})
    store.flush()
    tag = ask(server, "/sharpness/live")[0].headers["ETag"]
    store._lock.release()
    assert ask(server, "/sharpness/live")[0].headers["ETag"] != tag
    assert b"died" in ask(server)[1]


def test_a_run_that_cannot_be_read_is_a_line_and_the_others_are_served(server: Server, folder: Path) -> None:
    (folder / "ars2-base-s0" / "steps.parquet").write_bytes(b"PAR1 nothing")
    response, body = ask(server, "/sharpness/ars2-base-s0")
    assert response.status == 500
    assert body.count(b"\n") == 1
    assert b"steps.parquet cannot be read" in body
    assert ask(server)[0].status == ask(server, "/sharpness/ars2-base-s1")[0].status == 200


def test_pages_of_one_site_are_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "_KEPT", 2)
    monkeypatch.setattr(pages, "_report_html", lambda kind, paths: kind)
    site = Site(folder)
    for kind in PAGES:
        site.report(kind, b"ars2-base-s0")
    assert [kind for kind, _ in site._kept] == list(PAGES[-2:])


def test_huge_requests_are_refused(server: Server) -> None:
    host = f"Host: 127.0.0.1:{server.server_port}\r\n"
    for request, status in (
        (f"GET /{'a' * 9_000} HTTP/1.1\r\n{host}\r\n", b"414"),
        (f"GET /{'a' * 70_000} HTTP/1.1\r\n{host}\r\n", b"414"),
        (f"GET / HTTP/1.1\r\n{host}X: {'a' * 70_000}\r\n\r\n", b"431"),
        (f"GET / HTTP/1.1\r\n{host}{'X: a' * 1}\r\n" + "Y: b\r\n" * 200 + "\r\n", b"431"),
        ("\x16\x03\x01 nonsense <script>\r\n\r\n", b"400"),
    ):
        answer = raw(server, request.encode())
        assert answer.startswith(b"HTTP/1.0 " + status) or status == b"400"
        assert b"aaaa" not in answer
        assert b"script" not in answer


def test_a_client_that_is_slow_or_leaves_keeps_nobody_waiting(folder: Path, monkeypatch) -> None:
    monkeypatch.setattr(module._Handler, "timeout", 0.2)
    monkeypatch.setattr(module, "_REQUEST_SECONDS", 0.5)
    with Server(Site(folder), 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            silent, steady, gone = (socket.create_connection(("127.0.0.1", server.server_port)) for _ in range(3))
            gone.sendall(b"GET / HTTP/1.1\r\n")
            gone.close()
            silent.settimeout(60)
            steady.settimeout(60)
            assert ask(server, "/")[0].status == 200
            assert silent.recv(1) == b""  # left after the time without a byte
            with pytest.raises((ConnectionResetError, BrokenPipeError)):  # a byte at a time is as good as none
                _trickle(steady)
            silent.close()
            steady.close()
        finally:
            server.shutdown()
            thread.join()


def test_connections_beyond_the_last_are_closed_and_come_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CONNECTIONS", 2)
    with Server(Site(folder), 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            held = [socket.create_connection(("127.0.0.1", server.server_port)) for _ in range(2)]
            time.sleep(0.2)
            with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
                ask(server)
            for one in held:
                one.close()
            for _ in range(100):
                try:
                    assert ask(server)[0].status == 200
                    break
                except (http.client.RemoteDisconnected, ConnectionResetError):
                    time.sleep(0.05)
            else:
                pytest.fail("the places did not come back")
        finally:
            server.shutdown()
            thread.join()


def test_it_listens_on_this_machine_only(server: Server) -> None:
    assert server.server_address[0] == "127.0.0.1"
