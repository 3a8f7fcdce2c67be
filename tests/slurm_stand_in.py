"""Stands in for SLURM's commands: runs an array of jobs one after the other on this machine, as one node would."""

import os
import sys
from pathlib import Path

SBATCH = """#!{python}
import os, re, subprocess, sys
script = sys.argv[-1]
first, last = map(int, re.search(r"#SBATCH --array=(\\d+)-(\\d+)", open(script).read()).groups())
print("Submitted batch job 100", flush=True)
if os.fork():
    sys.exit()
os.setsid()
log = os.open({log!r}, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
os.dup2(log, 1), os.dup2(log, 2)
node = dict(SLURM_NTASKS="1", SLURM_JOB_NUM_NODES="1", SLURM_NODEID="0", SLURM_PROCID="0", SLURM_LOCALID="0",
            SLURM_JOB_NODELIST="localhost", SLURM_ARRAY_JOB_ID="100")
for task in range(first, last + 1):
    env = os.environ | node | dict(SLURM_JOB_ID=str(100 + task), SLURM_ARRAY_TASK_ID=str(task))
    subprocess.run(["bash", script], env=env)
"""
SRUN = """#!/bin/bash
while [[ "$1" == -* ]]; do case "$1" in --output|--error) shift 2;; *) shift;; esac; done
exec "$@"
"""
SACCT = '#!/bin/bash\necho "JobID|State|NodeList"\n'


def write_slurm_commands(folder: Path, log: Path) -> str:
    """Write sbatch, srun and sacct into a folder; returns a PATH that finds them."""
    folder.mkdir(parents=True)
    commands = {"sbatch": SBATCH.format(python=sys.executable, log=str(log)), "srun": SRUN, "sacct": SACCT}
    for name, text in commands.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"
