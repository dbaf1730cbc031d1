"""Jobs of SLURM: which one this process belongs to, the runs that it wrote, and starting it again."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from lightning.fabric.plugins.environments import SLURMEnvironment

from lightning_snn.files import write_text

_JOB = "slurm_job.txt"


def job_id() -> str | None:
    """Return the id of the batch job of this process, such as "4711", or "4711_3" in a job array; None outside one."""
    array, job = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_JOB_ID")
    if SLURMEnvironment.job_name() in ("bash", "interactive") or not job:
        return None
    return f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID', '')}" if array else job


def is_requeued() -> bool:
    """Return whether SLURM started the job of this process again, after it was preempted, failed or was requeued."""
    return job_id() is not None and os.environ.get("SLURM_RESTART_COUNT", "0") != "0"


def requeue_signal() -> signal.Signals | None:
    """Return the signal by which SLURM announces the end of a job that is to be requeued; None outside a batch job.

    It is SIGUSR1, as in Lightning: ``#SBATCH --signal=SIGUSR1@90`` sends it 90 seconds before the time limit.
    """
    return getattr(signal, "SIGUSR1", None) if job_id() is not None and SLURMEnvironment.detect() else None


def requeue() -> str:
    """Ask SLURM to start this job again, and return a message on the outcome."""
    job = job_id()
    try:
        asked = subprocess.run(["scontrol", "requeue", str(job)], capture_output=True, text=True, check=False)
        problem = asked.stderr.strip() or f"status {asked.returncode}"
        succeeded = asked.returncode == 0
    except OSError as error:
        problem, succeeded = str(error), False
    if succeeded:
        return f"SLURM starts job {job} again, which goes on in this folder."
    return f"SLURM does not start job {job} again (scontrol requeue: {problem})."


def keep_job(folder: Path) -> None:
    """Write the id of this job into the folder of a run, outside a job nothing."""
    job = job_id()
    if job is not None:
        write_text(folder / _JOB, f"{job}\n")


def is_of_this_job(folder: Path) -> bool:
    """Return whether the run in a folder was started, or last resumed, by this job."""
    file = folder / _JOB
    return file.is_file() and file.read_text(encoding="utf-8", errors="replace").strip() == job_id()
