"""A fake Slurm: `sbatch`, `squeue` and `scancel` that run array jobs as local processes.

It has no scheduling (queues, limits, nodes). Submitted scripts are kept in `state/N/script`.
"""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

STATE = Path(__file__).parent / "state"


def read_directives(script: str) -> dict[str, str]:
    """The `#SBATCH --key=value` lines."""
    lines = (shlex.split(line)[1] for line in script.splitlines() if line.startswith("#SBATCH "))
    return {
        key.removeprefix("--"): value for key, _, value in (line.partition("=") for line in lines)
    }


def submit(arguments: list[str]) -> None:
    """`sbatch [--export=ALL,NAME=VALUE] FILE`: keep the script and run its tasks in background."""
    script = Path(arguments[-1]).read_text(encoding="utf-8")
    if read_directives(script).get("partition") == "nowhere":
        sys.exit("sbatch: error: invalid partition specified: nowhere")
    number = 1 + len(list(STATE.iterdir()))
    (STATE / f"{number}").mkdir()
    (STATE / f"{number}/script").write_text(script, encoding="utf-8")
    given = [a.partition("=")[2].split(",")[1:] for a in arguments if a.startswith("--export=")]
    exported = dict(pair.split("=", 1) for pairs in given for pair in pairs)
    scheduler = subprocess.Popen(
        [sys.executable, __file__, "run", str(number)],
        env=os.environ | exported,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    (STATE / f"{number}/leader").write_text(str(scheduler.pid), encoding="utf-8")
    sys.stdout.write(f"Submitted batch job {number}\n")


def run(number: str) -> None:
    """Run the tasks of an array job, at most as many at a time as it allows."""
    script = STATE / number / "script"
    directives = read_directives(script.read_text(encoding="utf-8"))
    span, _, limit = directives["array"].partition("%")
    first, last = map(int, span.split("-"))
    running: list[subprocess.Popen[bytes]] = []
    for index in range(first, last + 1):
        while sum(task.poll() is None for task in running) >= int(limit):
            time.sleep(0.05)
        variables = {
            "SLURM_ARRAY_TASK_ID": f"{index}",
            "SLURM_JOB_ID": number,
            "SLURM_NODELIST": "here",
        }
        variables["SLURM_JOB_NAME"] = directives["job-name"]
        output = directives["output"].replace("%A", number).replace("%a", f"{index}")
        with Path(output).open("wb") as log:
            running.append(
                subprocess.Popen(
                    ["bash", str(script)], env=os.environ | variables, stdout=log, stderr=log
                )
            )
    for task in running:
        task.wait()
    (STATE / number / "ended").touch()


def jobs_named(arguments: list[str]) -> list[Path]:
    """The jobs with the name of `--name` that have not ended."""
    name = next(a.removeprefix("--name=") for a in arguments if a.startswith("--name="))
    return [
        job
        for job in STATE.iterdir()
        if not (job / "ended").exists()
        and read_directives((job / "script").read_text(encoding="utf-8"))["job-name"] == name
    ]


def cancel(arguments: list[str]) -> None:
    """`scancel --name=NAME`: kill the tasks."""
    for job in jobs_named(arguments):
        (job / "cancelled").touch()
        (job / "ended").touch()  # first, because the caller may be a task of the job
        os.killpg(int((job / "leader").read_text(encoding="utf-8")), signal.SIGKILL)


def main(command: str, arguments: list[str]) -> None:
    """Run the command of that name."""
    if command == "sbatch":
        submit(arguments)
    elif command == "squeue":
        sys.stdout.writelines(f"{job.name}\n" for job in jobs_named(arguments))
    elif command == "scancel":
        cancel(arguments)
    elif command == "scontrol":
        sys.stdout.write("here\n")
    elif command == "run":
        run(arguments[1])


if __name__ == "__main__":
    main("run" if sys.argv[1:2] == ["run"] else Path(sys.argv[0]).name, sys.argv[1:])
