"""A real Slurm on this machine, for tests: two made-up cards, accounts and limits, the files of labs/gpu/class.

`python tests/slurm/cluster.py start DIR` and `stop DIR` do the same by hand; then `export SLURM_CONF=DIR/slurm.conf`.
Needs root and Debian's slurm-wlm, munge, slurmdbd and mariadb-server, which start no service here.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
CLASS = ROOT / "labs" / "gpu" / "class"
PROGRAMS = ("munged", "slurmctld", "slurmd", "slurmdbd", "mariadbd", "mariadb-install-db", "sacctmgr")
PORTS = {"database": 33961, "slurmdbd": 33962, "slurmctld": 33963, "slurmd": 33964}
DAEMONS = []
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


def missing():
    """The programs that are not there."""
    return [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]


def configuration(folder, host, cpus):
    """The files of a teaching machine, but for what a machine without cards, systemd and cgroups lacks."""
    changed = {
        "slurm.conf": {
            "SlurmctldHost": f"{host}(127.0.0.1)",
            "SlurmUser": "root",
            "StateSaveLocation": folder / "state",
            "SlurmdSpoolDir": folder / "spool",
            "SlurmctldPidFile": folder / "slurmctld.pid",
            "SlurmdPidFile": folder / "slurmd.pid",
            "SlurmctldLogFile": folder / "slurmctld.log",
            "SlurmdLogFile": folder / "slurmd.log",
            "ProctrackType": "proctrack/linuxproc",
            "TaskPlugin": "task/none",
            "KillWait": 10,
            "AuthInfo": "cred_expire=5",
            "NodeName": f"{host} NodeAddr=127.0.0.1 CPUs={cpus} Sockets=1 CoresPerSocket={cpus} ThreadsPerCore=1 "
            "RealMemory=8000 Gres=gpu:2 State=UNKNOWN",
            "PartitionName": f"main Nodes={host} Default=YES MaxTime=08:00:00 DefaultTime=00:30:00 State=UP",
        },
        "gres.conf": {"NodeName": f"{host} Name=gpu File={folder}/gpu[0-1]"},
        "slurmdbd.conf": {
            "SlurmUser": "root",
            "LogFile": folder / "slurmdbd.log",
            "PidFile": folder / "slurmdbd.pid",
            "StorageHost": "127.0.0.1",
        },
    }
    more = {
        "slurm.conf": f"SlurmdUser=root\nSchedulerParameters=sched_interval=2,bf_interval=2\n"
        f"AccountingStoragePort={PORTS['slurmdbd']}\nSlurmctldPort={PORTS['slurmctld']}\n"
        f"SlurmdPort={PORTS['slurmd']}\n",
        "slurmdbd.conf": f"StoragePort={PORTS['database']}\nStoragePass=class\nDbdPort={PORTS['slurmdbd']}\n",
    }
    for name, values in changed.items():
        text = (CLASS / name).read_text(encoding="utf-8")
        for key, value in values.items():
            text, count = re.subn(rf"(?m)^{key}=.*$", f"{key}={value}", text)
            assert count == 1, f"{name}: {count} lines of {key}"
        path = folder / name
        path.write_text(text + more.get(name, ""), encoding="utf-8")
        path.chmod(0o600 if name == "slurmdbd.conf" else 0o644)


def run(*command, folder, **options):
    """A command under this Slurm; its output."""
    environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": f"{PATH}:{os.environ['PATH']}"}
    environment |= options.pop("env", {})
    done = subprocess.run(
        [str(part) for part in command], env=environment, capture_output=True, text=True, timeout=60, **options
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def wait(question, seconds, what):
    """Ask until the answer is yes. Raises: TimeoutError."""
    end = time.monotonic() + seconds
    while not (answer := question()):
        if time.monotonic() > end:
            raise TimeoutError(what)
        time.sleep(0.3)
    return answer


def is_open(port):
    """Whether something listens there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def daemon(*command, folder, user=None):
    """Start what stays in the foreground, with a log of its own."""
    environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": f"{PATH}:{os.environ['PATH']}"}
    with (folder / f"{Path(command[0]).name}.out").open("a") as log, (folder / "pids").open("a") as pids:
        parts = [str(part) for part in command]
        process = subprocess.Popen(parts, stdout=log, stderr=log, env=environment, user=user, start_new_session=True)
        DAEMONS.append(process)  # so that nobody waits for it in vain
        pids.write(f"{process.pid}\n")


def start(folder):
    """Start database, accounts, controller and the machine's own daemon."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)
    for name in ("state", "spool", "database"):
        (folder / name).mkdir()
    for number, device in enumerate([(1, 3), (1, 5)]):  # copies of /dev/null and /dev/zero
        os.mknod(folder / f"gpu{number}", 0o20666, os.makedev(*device))
    configuration(folder, socket.gethostname().partition(".")[0], os.cpu_count())

    Path("/run/munge").mkdir(mode=0o755, exist_ok=True)
    shutil.chown("/run/munge", "munge", "munge")
    daemon("munged", "--foreground", "--force", folder=folder, user="munge")

    shutil.chown(folder / "database", "mysql", "mysql")
    data = f"--datadir={folder}/database"
    run("mariadb-install-db", data, "--user=mysql", "--skip-test-db", folder=folder)
    database = ["mariadbd", data, f"--socket={folder}/database/socket", f"--port={PORTS['database']}"]
    database += ["--bind-address=127.0.0.1", "--skip-name-resolve", "--innodb-buffer-pool-size=64M"]
    daemon(*database, folder=folder, user="mysql")
    wait(lambda: is_open(PORTS["database"]), 60, "the database does not start")
    rights = "CREATE USER slurm@'127.0.0.1' IDENTIFIED BY 'class'; GRANT ALL ON slurm_acct_db.* TO slurm@'127.0.0.1'"
    run("mariadb", f"--socket={folder}/database/socket", "-e", rights, folder=folder)

    daemon("slurmdbd", "-D", folder=folder)
    wait(lambda: is_open(PORTS["slurmdbd"]), 60, "slurmdbd does not start")
    cluster = "class"
    run("sacctmgr", "--immediate", "add", "cluster", cluster, folder=folder)
    daemon("slurmctld", "-D", folder=folder)
    wait(lambda: is_open(PORTS["slurmctld"]), 60, "slurmctld does not start")
    daemon("slurmd", "-D", folder=folder)
    wait(lambda: "idle" in run("sinfo", "-h", "-o", "%t", folder=folder), 60, "the node does not come up")


def stop(folder):
    """End what was started, if anything was."""
    pids = folder / "pids"
    for pid in reversed(pids.read_text().split() if pids.exists() else []):
        try:
            os.killpg(int(pid), 15)
        except ProcessLookupError:
            continue
    for process in DAEMONS:
        process.wait(30)


if __name__ == "__main__":
    {"start": start, "stop": stop}[sys.argv[1]](Path(sys.argv[2]).resolve())
