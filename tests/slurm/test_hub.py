"""The class server: two users each open a lesson, in copies of their own, and run it on one environment."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

import pytest

pytestmark = pytest.mark.slurm

ROOT = Path(__file__).resolve().parent.parent.parent
HUB = ROOT / ".venv" / "hub"
USERS = ("mg-dora", "mg-emil")
LESSON = "minigrpo/lessons/02_process_steps.ipynb"

# What a test has in place of passwords, systemd and a Python that other users may read.
OVERRIDES = """
load_subconfig({config!r})
c.JupyterHub.authenticator_class = "dummy"
c.JupyterHub.spawner_class = "simple"
c.SimpleLocalProcessSpawner.home_dir_template = "/home/{{username}}"
c.Spawner.args = [*c.Spawner.args, "--allow-root"]
c.JupyterHub.bind_url = "http://127.0.0.1:{port}"
c.JupyterHub.hub_port = {hub_port}
c.ConfigurableHTTPProxy.command = {proxy!r}
c.ConfigurableHTTPProxy.api_url = "http://127.0.0.1:{proxy_port}"
c.JupyterHub.services = [{{"name": "test", "api_token": {token!r}, "admin": True}}]
c.JupyterHub.load_roles = [{{"name": "test", "services": ["test"], "scopes": {scopes!r}}}]
"""
SCOPES = ["admin:users", "admin:servers", "access:servers"]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A hub with the class's configuration; its address and a token."""
    if not (HUB / ".installed").exists():
        if os.environ.get("CI"):
            pytest.fail("needs .venv/hub: make .venv/hub/.installed")
        pytest.skip("needs JupyterHub in an environment of its own: make .venv/hub/.installed")
    if os.geteuid():
        pytest.skip("needs root, as a hub for users of a machine does")
    folder, port, token = tmp_path_factory.mktemp("hub"), free_port(), uuid.uuid4().hex
    config = folder / "config.py"
    filled = OVERRIDES.format(
        config=str(ROOT / "labs" / "gpu" / "class" / "jupyterhub_config.py"),
        port=port,
        hub_port=free_port(),
        proxy_port=free_port(),
        proxy=[str(HUB / "node_modules" / ".bin" / "configurable-http-proxy")],
        token=token,
        scopes=SCOPES,
    )
    config.write_text(filled)
    for name in USERS:
        subprocess.run(["useradd", "-m", name], check=False)
    environment = os.environ | {"COURSE": str(ROOT), "PATH": f"{HUB / 'bin'}:{os.environ['PATH']}"}
    log = (folder / "log").open("w")
    command = [str(HUB / "bin" / "jupyterhub"), "-f", str(config)]
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        wait(lambda: call(address, token, "GET", "/hub/api/") is not None, 90, folder / "log")
        yield address, token, folder / "log"
    finally:
        process.terminate()
        process.wait(30)
        log.close()
        for name in USERS:
            subprocess.run(["userdel", name], check=False)
            shutil.rmtree(f"/home/{name}", ignore_errors=True)


def wait(question, seconds, log):
    end = time.monotonic() + seconds
    while not (answer := question()):
        assert time.monotonic() < end, log.read_text()[-3000:]
        time.sleep(0.5)
    return answer


def call(address, token, method, path, body=None):
    """A request's answer as JSON; None where it fails."""
    request = urllib.request.Request(
        address + path,
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"token {token}", "Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            text = answer.read()
            return json.loads(text) if text else {}
    except (urllib.error.URLError, ConnectionError):
        return None


def test_two_users_each_open_a_lesson_of_their_own(hub):
    address, token, log = hub
    for name in USERS:
        assert call(address, token, "POST", f"/hub/api/users/{name}") is not None
        call(address, token, "POST", f"/hub/api/users/{name}/server", {})
    for name in USERS:
        wait(lambda: call(address, token, "GET", f"/user/{name}/api/status"), 120, log)  # noqa: B023
    for name in USERS:
        found = call(address, token, "GET", f"/user/{name}/api/contents/{LESSON}")
        assert found["type"] == "notebook", log.read_text()[-2000:]
        specs = call(address, token, "GET", f"/user/{name}/api/kernelspecs")
        assert specs["kernelspecs"]["minigrpo"]["spec"]["argv"][0].startswith(str(ROOT / ".venv"))

    # what one changes, the other does not see, and a second start does not undo
    dora, emil = USERS
    mine = {"type": "file", "format": "text", "content": "my notes"}
    assert call(address, token, "PUT", f"/user/{dora}/api/contents/minigrpo/notes.txt", mine) is not None
    assert call(address, token, "GET", f"/user/{emil}/api/contents/minigrpo/notes.txt") is None
    call(address, token, "DELETE", f"/hub/api/users/{dora}/server")
    wait(lambda: call(address, token, "GET", f"/hub/api/users/{dora}")["server"] is None, 60, log)
    call(address, token, "POST", f"/hub/api/users/{dora}/server", {})
    wait(lambda: call(address, token, "GET", f"/user/{dora}/api/contents/minigrpo/notes.txt"), 120, log)


def test_a_kernel_is_the_course_s(hub):
    """A cell of a lesson runs: the course's package, and one thread."""
    address, token, log = hub
    kernel = call(address, token, "POST", f"/user/{USERS[1]}/api/kernels", {"name": "minigrpo"})
    assert kernel is not None, log.read_text()[-2000:]
    code = "import os, minigrpo; print(minigrpo.__file__, os.environ['OMP_NUM_THREADS'])"
    script = f"""
import json, sys, uuid
from websocket import create_connection
url = {address!r}.replace("http", "ws") + "/user/{USERS[1]}/api/kernels/{kernel["id"]}/channels"
socket = create_connection(url, header=["Authorization: token {token}"], timeout=60)
header = dict(msg_id=uuid.uuid4().hex, username="", session=uuid.uuid4().hex, msg_type="execute_request", version="5.3")
content = dict(code={code!r}, silent=False, store_history=False, user_expressions={{}}, allow_stdin=False)
rest = dict(parent_header={{}}, metadata={{}}, channel="shell", buffers=[])
socket.send(json.dumps(dict(header=header, content=content, **rest)))
while True:
    message = json.loads(socket.recv())
    if message["header"]["msg_type"] in ("stream", "error"):
        sys.exit(print(message["content"].get("text") or message["content"]))
"""
    done = subprocess.run([HUB / "bin" / "python", "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == [str(ROOT / "minigrpo" / "__init__.py"), "1"], done.stdout + done.stderr


def test_another_spawner_is_refused():
    config = ROOT / "labs" / "gpu" / "class" / "jupyterhub_config.py"
    code = f"class C:\n    __getattr__ = lambda self, name: C()\nget_config = C\nexec(open({str(config)!r}).read())"
    environment = os.environ | {"CLASS_SPAWNER": "cloud"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "CLASS_SPAWNER must be one of local, slurm, got 'cloud'" in done.stderr
