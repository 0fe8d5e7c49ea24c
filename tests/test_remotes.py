"""DVC's remotes: real servers on this machine, and what they keep when something fails."""

import contextlib
import functools
import hashlib
import json
import os
import pwd
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.servers

PROGRAMS = {"ssh": "sshd ssh ssh-agent ssh-keygen", "s3": "rclone", "webdav": "wsgidav"}
SERVERS = list(PROGRAMS)
every_kind = pytest.mark.parametrize("kind", [*SERVERS, "local"])
every_server = pytest.mark.parametrize("kind", SERVERS)
over_ssh = pytest.mark.parametrize("kind", ["ssh"])
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin"])
SECRET, WRONG = "right-horse-battery", "wrong-horse-battery"

DRAW = """
import os, pathlib, random
count, size = {count}, {size}
folder = pathlib.Path("data")
folder.mkdir()
for i in range(count):
    (folder / str(i)).write_bytes(random.Random(i).randbytes(size))
print("draw", file=open(os.environ["LOG"], "a"))
"""
COUNT = """
import json, os, pathlib
total = sum(path.stat().st_size for path in pathlib.Path("data").iterdir())
pathlib.Path("summary.txt").write_text(f"{total} bytes\\n")
pathlib.Path("count.json").write_text(json.dumps({"bytes": total}))
print("count", file=open(os.environ["LOG"], "a"))
"""
PIPELINE = """
stages:
  draw:
    cmd: python -I -S draw.py
    deps: [draw.py]
    outs: [data]
  count:
    cmd: python -I -S count.py
    deps: [count.py, data]
    outs: [summary.txt]
    metrics: [count.json: {cache: false}]
"""


def wait_until(true: Callable[[], bool], what: str) -> None:
    """Asks until it is so; a test that waits in vain fails."""
    deadline = time.monotonic() + 300
    while not true():
        assert time.monotonic() < deadline, f"in vain: {what}"
        time.sleep(0.002)


def end(process: subprocess.Popen[bytes]) -> None:
    """Kills a process and all that it started, at once."""
    if process.poll() is not None:
        return
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process.pid)
        for each in [parent, *parent.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
    process.wait()


@dataclass
class Server:
    """A place for DVC's objects.

    Attributes:
        url: the remote's address.
        storage: the folder in which the objects end.
        command: what serves it; none for a folder.
        port: where it is served.
        shared: the remote's options that are in git.
        secret: those that are not.
        wrong: the same, for somebody who is not let in.
    """

    kind: str
    url: str
    storage: Path
    command: list[str] = field(default_factory=list)
    port: int = 0
    shared: dict[str, str] = field(default_factory=dict)
    secret: dict[str, str] = field(default_factory=dict)
    wrong: dict[str, str] = field(default_factory=dict)
    log: Path = Path()
    process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        if not self.command:
            return
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=bare(self.log)
            )
        wait_until(self.answers, f"an answer of the {self.kind} server")

    def answers(self) -> bool:
        assert self.process and self.process.poll() is None, self.log.read_text()
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self.port)) == 0

    def kill(self) -> None:
        if self.process:
            end(self.process)

    @contextlib.contextmanager
    def down(self) -> Iterator[None]:
        """For changes behind its back: a server may remember what it saw of a file."""
        self.kill()
        yield
        self.start()


def bare(near: Path) -> dict[str, str]:
    """An environment in which nobody has any settings, nor keys, nor an agent."""
    home = near.parent / "home"
    home.mkdir(exist_ok=True)
    return {
        "PATH": PATH,
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "NO_PROXY": "127.0.0.1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_MAX_ATTEMPTS": "1",  # a dead server is asked once, not for half a minute
        "RCLONE_CONFIG": "",
        "DVC_NO_ANALYTICS": "1",
        "DVC_SITE_CACHE_DIR": str(home / "site"),
        "DVC_GLOBAL_CONFIG_DIR": str(home / "global"),
        "DVC_SYSTEM_CONFIG_DIR": str(home / "system"),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_AUTHOR_NAME": "Tester",
        "GIT_AUTHOR_EMAIL": "tester@example.org",
        "GIT_COMMITTER_NAME": "Tester",
        "GIT_COMMITTER_EMAIL": "tester@example.org",
    }


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


def make_key(path: Path) -> Path:
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)]
    subprocess.run(command, check=True)
    return path


def ssh_server(folder: Path, port: int) -> Server:
    """OpenSSH with keys and settings of its own."""
    if os.geteuid() == 0:  # sshd keeps itself in here before a login; only root's needs it
        try:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        except OSError as error:
            pytest.skip(f"sshd of root needs /run/sshd: {error}")
    host, right, wrong = (make_key(folder / name) for name in ("host", "right", "wrong"))
    sshd = shutil.which("sshd", path=PATH) or ""
    test = [sshd, "-t", "-f", "/dev/null", "-h", str(host), "-o"]
    lenient = "PerSourcePenalties=no"  # from 9.8 on, who is refused some times must wait
    knows = subprocess.run([*test, lenient], capture_output=True).returncode == 0
    (folder / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1:{port}\n"
        f"HostKey {host}\n"
        f"AuthorizedKeysFile {right}.pub\n"
        "AuthenticationMethods publickey\n"
        "PermitRootLogin prohibit-password\n"
        "StrictModes no\n"
        "UsePAM no\n"
        "PidFile none\n"
        "Subsystem sftp internal-sftp\n"
        "LogLevel DEBUG1\n"  # what clients ask for
    )
    command = [sshd, "-D", "-e", "-f", f"{folder}/sshd_config", *(["-o", lenient] if knows else [])]
    user = pwd.getpwuid(os.geteuid()).pw_name  # whatever USER says
    return Server(
        "ssh", f"ssh://127.0.0.1:{port}{folder}/storage", folder / "storage", command, port,
        secret={"user": user, "keyfile": str(right)},
        wrong={"user": user, "keyfile": str(wrong)},
    )  # fmt: skip


def s3_server(folder: Path, port: int) -> Server:
    """rclone, which keeps a bucket's objects as files in a folder."""
    command = ["rclone", "serve", "s3", "--addr", f"127.0.0.1:{port}"]
    command += ["--auth-key", f"ann,{SECRET}", str(folder / "storage")]
    (folder / "storage/bucket").mkdir(parents=True)
    return Server(
        "s3", "s3://bucket/dvc", folder / "storage/bucket/dvc", command, port,
        shared={"endpointurl": f"http://127.0.0.1:{port}"},
        secret={"access_key_id": "ann", "secret_access_key": SECRET},
        wrong={"access_key_id": "ann", "secret_access_key": WRONG},
    )  # fmt: skip


def webdav_server(folder: Path, port: int) -> Server:
    """WsgiDAV with basic authentication."""
    (folder / "storage/dvc").mkdir(parents=True)  # DVC makes all folders but this one
    settings = {
        "host": "127.0.0.1",
        "port": port,
        "provider_mapping": {"/": str(folder / "storage")},
        "http_authenticator": {"accept_digest": False, "default_to_digest": False},
        "simple_dc": {"user_mapping": {"*": {"ann": {"password": SECRET}}}},
    }
    (folder / "wsgidav.json").write_text(json.dumps(settings))
    command = ["wsgidav", "--config", f"{folder}/wsgidav.json"]
    return Server(
        "webdav", f"webdav://127.0.0.1:{port}/dvc", folder / "storage/dvc", command, port,
        secret={"user": "ann", "password": SECRET},
        wrong={"user": "ann", "password": WRONG},
    )  # fmt: skip


def local_server(folder: Path, port: int) -> Server:
    return Server("local", str(folder / "storage"), folder / "storage")


MAKERS = {"ssh": ssh_server, "s3": s3_server, "webdav": webdav_server, "local": local_server}


@contextlib.contextmanager
def serving(kind: str, folder: Path) -> Iterator[Server]:
    for program in PROGRAMS.get(kind, "").split():
        if not shutil.which(program, path=PATH):
            pytest.skip(f"{program} is not installed")
    folder.mkdir()
    server = MAKERS[kind](folder, free_port())
    server.log = folder / "log"
    try:
        server.start()
        yield server
    finally:
        server.kill()


@dataclass
class Clone:
    """A clone of the small project, with a cache of its own."""

    folder: Path
    env: dict[str, str]

    @property
    def cache(self) -> Path:
        return self.folder / ".dvc/cache"

    def run(self, *command: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            command, cwd=self.folder, env=self.env, capture_output=True, text=True,
            stdin=subprocess.DEVNULL, timeout=120, check=False,
        )  # fmt: skip

    def must(self, *command: str) -> str:
        result = self.run(*command)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout + result.stderr

    def fails(self, *command: str) -> str:
        result = self.run(*command)
        assert result.returncode != 0, result.stdout + result.stderr
        return result.stdout + result.stderr

    def start(self, *command: str) -> "subprocess.Popen[bytes]":
        with (self.folder / ".dvc/tmp/output").open("wb") as out:
            return subprocess.Popen(
                command, cwd=self.folder, env=self.env, stdin=subprocess.DEVNULL, stdout=out,
                stderr=out,
            )  # fmt: skip

    def ran(self) -> list[str]:
        """The stages whose commands ran since the last call, in any clone of the test."""
        log = Path(self.env["LOG"])
        names = log.read_text().split() if log.exists() else []
        log.unlink(missing_ok=True)
        return names

    def contents(self) -> dict[str, bytes]:
        """The bytes of all files of the workspace."""
        paths = [path for path in self.folder.rglob("*") if path.is_file()]
        named = {path.relative_to(self.folder): path for path in paths}
        hidden = {".dvc", ".git"}
        return {str(n): p.read_bytes() for n, p in named.items() if n.parts[0] not in hidden}

    def use(self, server: Server, verify: str = "true") -> None:
        """Makes a server the remote: what is shared is committed, what is secret is not."""
        (self.folder / ".dvc/config").write_text(shared_config(server, verify))
        self.log_in(server.secret)
        self.must("git", "commit", "--quiet", "--all", "--message", "A remote")

    def log_in(self, secret: dict[str, str]) -> None:
        (self.folder / ".dvc/config.local").write_text(section(secret))

    def clone(self, name: str) -> "Clone":
        """Another clone with the same secrets, but nothing in its cache."""
        folder = self.folder.parent / name
        self.must("git", "clone", "--quiet", str(self.folder), str(folder))
        shutil.copy(self.folder / ".dvc/config.local", folder / ".dvc/config.local")
        (folder / ".dvc/tmp").mkdir()
        return Clone(folder, self.env)


def section(options: dict[str, str]) -> str:
    """The remote's options as DVC writes them."""
    if not options:
        return ""
    lines = [f"    {key} = {value}" for key, value in options.items()]
    return "\n".join(["['remote \"store\"']", *lines, ""])


def shared_config(server: Server, verify: str = "true") -> str:
    options = {"url": server.url, **server.shared, "verify": verify}
    return "[core]\n    remote = store\n" + section(options)


def objects(store: Path) -> dict[str, Path]:
    """The objects under their final names, in a cache or on a server."""
    found = {"".join(path.parts[-2:]): path for path in (store / "files/md5").glob("??/*")}
    return {oid: path for oid, path in found.items() if re.fullmatch(r"[0-9a-f]{32}(\.dir)?", oid)}


def corrupt(store: Path) -> set[str]:
    """The objects that have not the content that they are named by."""
    return {
        oid
        for oid, path in objects(store).items()
        if hashlib.md5(path.read_bytes()).hexdigest() != oid.split(".")[0]
    }


@functools.cache
def commits(folder: Path, count: int, size: int) -> None:
    """Makes a repository of two stages, run and committed: one draws files, one counts bytes."""
    folder.mkdir(parents=True)
    clone = Clone(folder, {**bare(folder), "LOG": os.devnull})
    (folder / "draw.py").write_text(DRAW.format(count=count, size=size))
    (folder / "count.py").write_text(COUNT)
    (folder / "dvc.yaml").write_text(PIPELINE)
    clone.must("git", "init", "--quiet", "--initial-branch", "main")
    clone.must("dvc", "init", "--quiet")
    clone.must("dvc", "repro", "--quiet")
    clone.must("git", "add", "--all")
    clone.must("git", "commit", "--quiet", "--message", "Start")


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("templates")
    yield folder
    shutil.rmtree(folder)  # large; pytest would keep it for days


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder that is removed after the test, however large."""
    yield tmp_path
    shutil.rmtree(tmp_path)


def project(templates: Path, place: Path, count: int, size: int) -> Clone:
    """A repository with results: a folder of `count` files of `size` bytes, and two small ones."""
    template = templates / f"{count}x{size}" / "project"
    commits(template, count, size)
    shutil.copytree(template, place / "project", symlinks=True)
    return Clone(place / "project", {**bare(place / "project"), "LOG": str(place / "ran")})


@pytest.fixture
def small(templates: Path, place: Path) -> Clone:
    return project(templates, place, 6, 2000)


@pytest.fixture
def server(kind: str, place: Path) -> Iterator[Server]:
    with serving(kind, place / "server") as server:
        yield server


@every_kind
def test_what_one_clone_pushes_another_pulls_and_runs_nothing(
    kind: str, server: Server, small: Clone
) -> None:
    small.use(server)
    small.must("dvc", "push")
    assert len(objects(server.storage)) == 8
    other = small.clone("other")
    assert not (other.folder / "data").exists()
    other.must("dvc", "pull")
    assert other.contents() == small.contents()
    assert set(objects(other.cache)) == set(objects(server.storage))
    assert "up to date" in other.must("dvc", "repro")
    assert other.ran() == []
    assert other.must("git", "status", "--porcelain") == ""


@every_kind
def test_the_run_cache_spares_another_clone_the_run(
    kind: str, server: Server, small: Clone
) -> None:
    small.use(server)
    small.must("dvc", "push", "--run-cache")
    for name, options, runs in (
        ("with", ["--run-cache"], ["count"]),  # its metric is in git, which the run cache is not
        ("without", [], ["draw", "count"]),
    ):
        other = small.clone(name)
        other.must("dvc", "pull", *options)
        (other.folder / "dvc.lock").unlink()
        shutil.rmtree(other.folder / "data")
        other.must("dvc", "repro")
        assert other.ran() == runs, name
        assert other.contents() == small.contents()


REFUSALS = {"ssh": "Permission denied", "s3": "Forbidden", "webdav": "401"}


@every_server
def test_who_is_not_let_in_is_told_so_and_changes_nothing(
    kind: str, server: Server, small: Clone
) -> None:
    small.use(server)
    small.log_in(server.wrong)
    said = small.fails("dvc", "push")
    assert REFUSALS[kind] in said
    assert objects(server.storage) == {}
    assert not [path for path in server.storage.rglob("*") if path.is_file()]
    small.log_in(server.secret)
    small.must("dvc", "push")
    other = small.clone("other")
    other.log_in(server.wrong)
    before = other.contents()
    said += other.fails("dvc", "pull")
    assert said.count(REFUSALS[kind]) >= 2
    assert other.contents() == before
    assert objects(other.cache) == {}
    assert SECRET not in said and WRONG not in said
    other.log_in(server.secret)
    other.must("dvc", "pull")
    assert other.contents() == small.contents()


@every_kind
def test_secrets_never_get_into_git(kind: str, server: Server, small: Clone) -> None:
    small.must("dvc", "remote", "add", "--default", "store", server.url)
    for name, value in {**server.shared, "verify": "true"}.items():
        small.must("dvc", "remote", "modify", "store", name, value)
    for name, value in server.secret.items():
        small.must("dvc", "remote", "modify", "--local", "store", name, value)
    small.must("git", "add", "--all")
    small.must("git", "commit", "--quiet", "--message", "A remote")
    history = small.must("git", "log", "--patch", "--all")
    assert server.url in history
    assert not [value for value in server.secret.values() if f" = {value}" in history]
    assert ".dvc/config.local" not in small.must("git", "ls-files")
    assert small.must("git", "status", "--porcelain") == ""
    # so did the other tests write it, faster
    assert (small.folder / ".dvc/config").read_text() == shared_config(server)
    local = small.folder / ".dvc/config.local"
    assert (local.read_text() if local.exists() else "") == section(server.secret)


def bytes_in(folder: Path) -> int:
    """What has arrived so far, under any name."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # renamed just now
            total += path.stat().st_size if path.is_file() else 0
    return total


def cut(clone: Clone, command: str, store: Path, enough: int, server: Server) -> None:
    """Kills the server when so many bytes are in a store; for a folder, the command itself."""
    process = clone.start("dvc", command)
    try:
        wait_until(lambda: bytes_in(store) > enough or process.poll() is not None, command)
        assert process.poll() is None, "it was faster than this test"
        if server.process:
            server.kill()
        else:
            end(process)
        assert process.wait(120) != 0
    finally:
        end(process)


MB = 1_000_000
TWO = (2, 50 * MB)  # as a variant of two seeds; the least with which DVC keeps half a file
MANY = (600, MB // 10)  # a folder copies large files too fast to be cut


@every_kind
def test_a_push_that_was_cut_is_completed_by_the_next(
    kind: str, server: Server, templates: Path, place: Path
) -> None:
    """Half an upload has no final name. But for WebDAV: there, only `verify` notices."""
    count, size = MANY if kind == "local" else (4, 20 * MB)
    clone = project(templates, place, count, size)
    clone.use(server)
    cut(clone, "push", server.storage, count * size // 3, server)
    torn = corrupt(server.storage)
    assert bool(torn) == (kind == "webdav")
    assert len(objects(server.storage)) < count + 2
    server.start()
    clone.must("dvc", "push")
    assert corrupt(server.storage) == torn  # DVC asks for names alone
    other = clone.clone("other")
    if torn:
        assert re.search(NOT_THERE, other.fails("dvc", "pull"))
        assert not corrupt(other.cache) and not (other.folder / "data").exists()
        repair(clone, server, torn)
    other.must("dvc", "pull")
    assert other.contents() == clone.contents()
    assert len(objects(server.storage)) == count + 2


@every_kind
def test_a_pull_that_was_cut_is_completed_by_the_next(
    kind: str, server: Server, templates: Path, place: Path
) -> None:
    count, size = MANY if kind == "local" else TWO
    clone = project(templates, place, count, size)
    clone.use(server)
    clone.must("dvc", "push")
    other = clone.clone("other")
    cut(other, "pull", other.cache, count * size * 11 // 20, server)
    assert not corrupt(other.cache)
    assert len(objects(other.cache)) < count + 2
    assert not (other.folder / "data").exists()
    server.start()
    other.must("dvc", "pull")
    assert other.contents() == clone.contents()
    assert not corrupt(other.cache)


@pytest.mark.slow  # why docs/remotes.md insists on it
@every_server
def test_without_verify_a_pull_that_was_cut_poisons_the_cache(
    kind: str, server: Server, templates: Path, place: Path
) -> None:
    """Why `verify` is in every example: the day when this fails, DVC does without it."""
    clone = project(templates, place, *TWO)
    clone.use(server, verify="false")
    clone.must("dvc", "push")
    other = clone.clone("other")
    cut(other, "pull", other.cache, 55 * MB, server)  # amid the second
    torn = corrupt(other.cache)
    assert len(torn) == 1
    server.start()
    other.must("dvc", "pull")
    assert corrupt(other.cache) == torn
    assert other.contents() != clone.contents()
    for oid in torn:
        objects(other.cache)[oid].unlink()
    shutil.rmtree(other.folder / "data")  # DVC remembers it as right
    other.must("dvc", "pull")
    assert other.contents() == clone.contents()


@every_kind
def test_a_damaged_object_is_refused(kind: str, server: Server, small: Clone) -> None:
    small.use(server)
    small.must("dvc", "push")
    oid = hashlib.md5((small.folder / "data/3").read_bytes()).hexdigest()
    with server.down():
        path = objects(server.storage)[oid]
        right, mode = path.read_bytes(), path.stat().st_mode
        path.unlink()
        path.write_bytes(bytes([right[0] ^ 1]) + right[1:])
        path.chmod(mode)
    other = small.clone("other")
    said = other.fails("dvc", "pull", "--verbose")
    assert re.search(NOT_THERE, said)
    assert re.search(rf"corrupted cache file '.*/{oid[:2]}/{oid[2:]}'", said)
    assert not corrupt(other.cache) and oid not in objects(other.cache)
    assert not (other.folder / "data").exists()
    repair(small, server, {oid})
    other.must("dvc", "pull")
    assert other.contents() == small.contents()


NOT_THERE = r"Checkout failed for following targets:\s+data\s"


def repair(clone: Clone, server: Server, bad: set[str]) -> None:
    """Removes bad objects, and the lists of folders: while those are there, DVC asks no further."""
    with server.down():
        for oid, path in objects(server.storage).items():
            if oid in bad or oid.endswith(".dir"):
                path.unlink()
    clone.must("dvc", "push")
    assert not corrupt(server.storage)


# Whom DVC trusts over SSH: everybody, with the user's agent. What helps is OpenSSH itself.


def known_hosts(clone: Clone, server: Server, key: str) -> None:
    """Lets the user know the server by a key, and wish it to be checked."""
    folder = Path(clone.env["HOME"]) / ".ssh"
    folder.mkdir(mode=0o700, exist_ok=True)
    public = (server.log.parent / f"{key}.pub").read_text()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{server.port} {public}")
    (folder / "config").write_text("Host *\n    StrictHostKeyChecking yes\n")


@over_ssh
def test_dvc_alone_takes_any_host_key(kind: str, server: Server, small: Clone) -> None:
    small.use(server)
    known_hosts(small, server, "wrong")
    small.must("dvc", "push")
    assert len(objects(server.storage)) == 8
    said = small.fails("dvc", "remote", "modify", "store", "known_hosts", "some-file")
    assert "extra keys not allowed" in said


@pytest.mark.parametrize(("kind", "key"), [("ssh", "host"), ("ssh", "wrong")])
def test_through_openssh_only_the_right_host_key_is_taken(
    kind: str, key: str, server: Server, small: Clone
) -> None:
    small.use(server)
    known_hosts(small, server, key)
    folder = Path(small.env["HOME"]) / ".ssh"
    login = f"-i {server.secret['keyfile']} -p {server.port} {server.secret['user']}@127.0.0.1"
    files = f"-F none -o UserKnownHostsFile={folder}/known_hosts -o StrictHostKeyChecking=yes"
    command = f"ssh {files} -o BatchMode=yes -W 127.0.0.1:{server.port} {login}"
    (folder / "config").write_text(f"Host store\n    ProxyCommand {command}\n")
    url = f"ssh://store{server.storage}"
    small.must("dvc", "remote", "modify", "store", "url", url)
    if key == "host":
        small.must("dvc", "push")
        assert len(objects(server.storage)) == 8
    else:
        assert "Connection lost" in small.fails("dvc", "push")  # why: only OpenSSH itself says
        assert objects(server.storage) == {}


@pytest.mark.parametrize(
    ("kind", "setting", "forwarded"),
    [("ssh", "ForwardAgent no", True), ("ssh", "IdentityAgent none", False)],
)
def test_dvc_lets_the_server_use_the_agent_unless_it_has_none(
    kind: str, setting: str, forwarded: bool, server: Server, small: Clone
) -> None:
    small.use(server)
    known_hosts(small, server, "host")
    (Path(small.env["HOME"]) / ".ssh/config").write_text(f"Host *\n    {setting}\n")
    address = Path(tempfile.mkdtemp(dir="/tmp")) / "agent"  # a socket's path must be short
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(address)], stdout=subprocess.DEVNULL)
    try:
        wait_until(address.exists, "the agent's socket")
        small.env["SSH_AUTH_SOCK"] = str(address)
        small.must("dvc", "push")
    finally:
        end(agent)
        shutil.rmtree(address.parent)
    assert ("req auth-agent-req@openssh.com" in server.log.read_text()) == forwarded
