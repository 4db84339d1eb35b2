"""`hpcvol doctor`: what this machine, or the hosts of a job, offer to training, and what to type about the rest."""

import json
import shlex
from collections.abc import Iterable
from typing import Annotated

import typer

from hpcvol.cli.reporting import reported
from hpcvol.doctor.finding import Finding, Status
from hpcvol.errors import ConfigError

EXIT_WRONG = 1


@reported
def doctor(
    names: Annotated[
        str | None, typer.Argument(metavar="[A,B,...]", help="With --hosts: which; those of the Slurm job by default.")
    ] = None,
    hosts: Annotated[
        bool, typer.Option("--hosts", help="Look at several hosts and at the network between each pair of them.")
    ] = False,
    rsh: Annotated[
        str, typer.Option(metavar="COMMAND", help="With --hosts A,B: starts a program there, as COMMAND HOST WORDS...")
    ] = "ssh -o BatchMode=yes -o ConnectTimeout=5",
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Examine this machine: MPI, Slurm, network, memory, disks, torch. Exits with 1 if something is wrong."""
    from hpcvol.doctor.examine import examine

    if names is not None and not hosts:
        raise ConfigError(f"hpcvol doctor {names}: hosts are looked at with --hosts {names}")
    findings = examine()
    if hosts:
        from hpcvol.doctor.hosts import examine_hosts

        findings += examine_hosts(names.split(",") if names else None, shlex.split(rsh))
    healthy = all(finding.status is not Status.WRONG for finding in findings)
    if as_json:
        print(json.dumps({"healthy": healthy, "findings": [finding.to_json() for finding in findings]}, indent=1))
    else:
        _print(findings)
    if not healthy:
        raise typer.Exit(EXIT_WRONG)


def _print(findings: Iterable[Finding]) -> None:
    topic = None
    counts = dict.fromkeys(Status, 0)
    for finding in findings:
        if finding.topic != topic:
            topic = finding.topic
            print(topic)
        counts[finding.status] += 1
        print(f"  {finding.status:<6} {finding.name:<14} {finding.found}")
        if finding.remedy is not None:
            print(f"         {'':<14} -> {finding.remedy}")
    print(f"{counts[Status.OK]} ok, {counts[Status.NOTE]} notes, {counts[Status.WRONG]} wrong")
