"""A class server: JupyterHub on one machine, or in front of Slurm. `jupyterhub -f labs/gpu/class/jupyterhub_config.py`.

    python3 -m venv /opt/hub && /opt/hub/bin/pip install jupyterhub jupyterlab batchspawner jupyterhub-systemdspawner
    npm install -g configurable-http-proxy
    cd /opt/course && make demo                                                   # the course's own environment
    /opt/course/.venv/bin/python -m ipykernel install --prefix /opt/hub --name minigrpo --display-name minigrpo

Two environments: the hub's with Jupyter, and the course's, which all kernels share and nobody but root may write. Each
student gets a copy of lessons and labs once, and keeps it. Variables: COURSE, the folder of the course (/opt/course);
CLASS_SPAWNER, local (one machine, limits by systemd) or slurm (each server is a job).
"""

import os
import shutil
from pathlib import Path

c = get_config()  # noqa: F821
COURSE = Path(os.environ.get("COURSE", "/opt/course"))
WHERE = os.environ.get("CLASS_SPAWNER", "local")
SPAWNERS = {"local": "systemdspawner.SystemdSpawner", "slurm": "batchspawner.SlurmSpawner"}
if WHERE not in SPAWNERS:
    raise ValueError(f"CLASS_SPAWNER must be one of {', '.join(SPAWNERS)}, got {WHERE!r}")

# ---------------------------------------------------------------------------------------------------------------------
# Who
# ---------------------------------------------------------------------------------------------------------------------

# Users of the machine, by their passwords. A university's own login: an oauthenticator or ldapauthenticator.
c.JupyterHub.authenticator_class = "pam"
c.Authenticator.allow_all = True  # every user of the machine
c.Authenticator.admin_users = set(filter(None, os.environ.get("INSTRUCTORS", "").split(",")))

# ---------------------------------------------------------------------------------------------------------------------
# What everybody gets
# ---------------------------------------------------------------------------------------------------------------------

c.JupyterHub.spawner_class = SPAWNERS[WHERE]
c.Spawner.default_url = "/lab/tree/minigrpo/lessons"
c.Spawner.http_timeout = c.Spawner.start_timeout = 120
# The kernel's libraries take a thread each; lessons are measured so, and thirty students share the cores.
c.Spawner.environment = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

# A lesson takes at most 2 GB and one core. systemd and Slurm keep to this; nothing else does.
c.Spawner.mem_limit = "4G"
c.Spawner.cpu_limit = 2.0

# Who has not touched a notebook for an hour gives its kernel's memory back, after two hours the whole server's.
c.Spawner.args = [
    "--MappingKernelManager.cull_idle_timeout=3600",
    "--ServerApp.shutdown_no_activity_timeout=7200",
]


def copy_course(spawner):
    """Give a student lessons and labs of their own, once: what they have changed stays."""
    import pwd

    user = pwd.getpwnam(spawner.user.name)
    mine = Path(user.pw_dir) / "minigrpo"
    if mine.exists():
        return
    for name in ("lessons", "labs", "docs"):
        shutil.copytree(COURSE / name, mine / name)
    for path in (mine, *mine.rglob("*")):
        os.chown(path, user.pw_uid, user.pw_gid)


c.Spawner.pre_spawn_hook = copy_course

# ---------------------------------------------------------------------------------------------------------------------
# In front of Slurm: a server is a job. batchspawner is imported since it adds what its jobs call
# ---------------------------------------------------------------------------------------------------------------------

if WHERE == "slurm":
    import batchspawner  # noqa: F401

    c.SlurmSpawner.req_partition = os.environ.get("SBATCH_PARTITION", "main")
    c.SlurmSpawner.req_account = os.environ.get("SBATCH_ACCOUNT", "class")
    c.SlurmSpawner.req_memory = "4G"
    c.SlurmSpawner.req_nprocs = "2"
    c.SlurmSpawner.req_runtime = "04:00:00"  # JupyterHub has no limit of its own: without it a card is kept all night
    c.JupyterHub.hub_ip = "0.0.0.0"  # jobs on other nodes call back
