"""Names that only POSIX has: each is behind a guard, and two steps are recorded without any of them."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("cli", "landscape", "optimizer", "probes", "reports", "typings/lossscope")
MODULES = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "spwd", "syslog", "termios", "tty"}
NAMES = {
    "os": {
        *("O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "O_SYNC", "WNOHANG", "chown", "fchmod", "fchown"),
        *("fork", "forkpty", "getegid", "geteuid", "getgid", "getloadavg", "getpgid", "getuid", "killpg", "lchown"),
        *("mkfifo", "mknod", "nice", "posix_fadvise", "pread", "pwrite", "register_at_fork", "sched_getaffinity"),
        *("sched_setaffinity", "setsid", "setuid", "statvfs", "sysconf", "uname", "wait", "waitpid"),
    },
    "signal": {
        *("SIGALRM", "SIGCHLD", "SIGCONT", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGQUIT", "SIGSTOP", "SIGTSTP", "SIGUSR1"),
        *("SIGUSR2", "alarm", "pause", "pthread_kill", "pthread_sigmask", "setitimer", "sigpending", "sigwait"),
    },
    "select": {"epoll", "kqueue", "poll"},
    "time": {"tzset"},
}


def posix_only(tree: ast.AST) -> Iterator[str]:
    """Yield the POSIX-only names in a source that no test of their presence guards."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            yield str(node.module)
        elif isinstance(node, ast.ImportFrom) and node.module in NAMES:
            yield from (f"{node.module}.{alias.name}" for alias in node.names if alias.name in NAMES[node.module])
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield from (f"{node.value.id}.{name}" for name in NAMES.get(node.value.id, ()) if name == node.attr)


def guarded(tree: ast.AST) -> set[str]:
    """Return the names whose presence a source tests with `hasattr(module, "name")`."""
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name))
    return {
        f"{one.args[0].id}.{one.args[1].value}"
        for one in calls
        if one.func.id == "hasattr" and isinstance(one.args[0], ast.Name) and isinstance(one.args[1], ast.Constant)
    }


def unguarded(source: str) -> set[str]:
    tree = ast.parse(source)
    return set(posix_only(tree)) - guarded(tree)


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_source_uses_a_posix_only_name_without_a_guard(folder: str) -> None:
    found = {str(path): unguarded(path.read_text()) for path in sorted((ROOT / folder).rglob("*.py"))}
    assert found
    assert {path: names for path, names in found.items() if names} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import fcntl",
        "from fcntl import flock",
        "import os\nos.register_at_fork()",
        "from os import fork",
        "import signal\nsignal.SIGKILL",
    ],
)
def test_an_unguarded_name_is_found(source: str) -> None:
    assert unguarded(source)


def test_a_guarded_name_is_allowed() -> None:
    assert not unguarded("import os\nif hasattr(os, 'fork'):\n    os.fork()")


_WITHOUT = """
import importlib.abc, os, signal, sys
import torch  # not ours: it may use what its platform has
import filelock, pyarrow.parquet, pandas, scipy.special
for module, names in {NAMES!r}.items():
    for name in names:
        if module in ("os", "signal") and name not in ("waitpid", "uname", "pread"):
            vars(sys.modules[module]).pop(name, None)
for name in {MODULES!r}:
    sys.modules[name] = None
from lossscope.landscape import Recorder
from lossscope.landscape.run import Run
from lossscope.landscape.training import parallel
model = torch.nn.Linear(3, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
with Recorder(sys.argv[1], model, optimizer, steps=2) as recorder:
    for _ in range(2):
        optimizer.zero_grad()
        loss = model(torch.ones(1, 3)).square().sum()
        loss.backward()
        optimizer.step()
        recorder.step(loss)
with parallel._not_interrupted():
    pass
run = Run.open(sys.argv[1])
assert (run.status, len(run.steps)) == ("finished", 2), run.ends
"""


def test_two_steps_are_recorded_without_the_posix_only_names(tmp_path: Path) -> None:
    code = _WITHOUT.replace("{NAMES!r}", repr(NAMES)).replace("{MODULES!r}", repr(MODULES))
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a")], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
