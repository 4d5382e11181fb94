"""Commands for runs on a server that are one's own: fetch what they made, read their log, delete them."""

from __future__ import annotations

import json as json_text
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedloom.cli.identities import IdentityFolder
from fedloom.cli.reaching import RunId, Server, TokenFile, reach
from fedloom.cli.terminal import print_line, print_notice
from fedloom.core.errors import UsageError

if TYPE_CHECKING:
    from fedloom.client.download import RemoteFile
    from fedloom.client.results import Offer, ResultsClient

_BASIC = ("model", "report", "records")


def fetch(
    run: RunId,
    model: Annotated[bool, typer.Option("--model", help="Only the model.")] = False,
    report: Annotated[bool, typer.Option("--report", help="Only the report.")] = False,
    everything: Annotated[
        bool, typer.Option("--all", help="Everything, checkpoints included, as for `fedloom resume` on this machine.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the files go; by default runs/RUN.", show_default=False)
    ] = None,
    server: Server = None,
    identity: IdentityFolder = None,
    token_file: TokenFile = None,
) -> None:
    """Fetch a run from a server: its model, report and records, each checked by its SHA-256.

    A broken download continues where it stopped, also in a later call. Of a run in progress the model of its newest
    checkpoint is fetched. States of single clients stay on the server.
    """
    from fedloom.client.download import Download, require_free_folder
    from fedloom.client.results import ResultsClient

    if model + report + everything > 1:
        raise UsageError("--model, --report and --all exclude each other; without any, fetch takes all but checkpoints")
    kinds = ("model",) if model else ("report",) if report else () if everything else _BASIC
    folder = out or Path("runs") / run
    require_free_folder(folder, run)
    with reach(ResultsClient, server, identity, token_file) as results:
        source = _Files(results, run, kinds)
        places = Download(source, run, folder, print_notice).all()
        offer = source.offer
    if report and not any(each.kind == "report" for each in offer.files):
        places = [_own_report(folder)]
    if offer.status != "done":
        print_notice(_so_far(run, offer))
    for place in places:
        typer.echo(str(place))


class _Files:
    """A run's files of some kinds; where it has no report, the records a report can be made of."""

    def __init__(self, results: ResultsClient, run: str, kinds: tuple[str, ...]) -> None:
        self._results, self._run, self._kinds = results, run, kinds
        self.offer: Offer

    def files(self) -> tuple[RemoteFile, ...]:
        self.offer = self._results.files(self._run, self._kinds)
        if self._kinds == ("report",) and not any(each.kind == "report" for each in self.offer.files):
            self.offer = self._results.files(self._run, ("records",))
        if self._kinds == ("model",) and not any(each.kind == "model" for each in self.offer.files):
            raise UsageError(
                f"run {self._run!r} is {self.offer.status} and has no model yet: no round of it has been saved. Follow "
                f"it with: fedloom watch {self._run}"
            )
        return self.offer.files

    def fetch(self, file: RemoteFile, offset: int) -> Iterator[bytes]:
        return self._results.fetch(self._run, file, offset)


def _own_report(folder: Path) -> Path:
    from fedloom.reporting.report import write_report
    from fedloom.reporting.run_folder import of_any_origin

    with of_any_origin(folder):
        return write_report(folder)


def _so_far(run: str, offer: Offer) -> str:
    """Return a sentence about a run that is not done."""
    rounds = f"{offer.rounds_done} of {offer.rounds or 'an open number of'} rounds"
    saved = f"; the model is that of round {offer.model_round}" if offer.model_round else ""
    again = ", and fetch again later for the rest" if offer.status in ("queued", "running") else ""
    return f"run {run} is {offer.status}, {rounds} done{saved}. These are its files so far{again}"


def logs(
    run: RunId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Continue until the run ends.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print each event as one JSON object.")] = False,
    server: Server = None,
    identity: IdentityFolder = None,
    token_file: TokenFile = None,
) -> None:
    """Print what has happened in a run on a server: rounds, failed clients, refusals of nodes, how it ended."""
    from fedloom.client.control import ControlClient
    from fedloom.client.results import ResultsClient
    from fedloom.core.event_text import event_line
    from fedloom.reporting.replay import event_of

    def show(events: Iterator[dict[str, object]]) -> None:
        for values in events:
            if json:
                typer.echo(json_text.dumps(values))
            elif (line := event_line(event_of(values))) is not None:
                about = "".join(f", {key} {value}" for key, value in line.about.items() if key != "run")
                print_line(f"{values.get('at', '')} {line.level.upper()}{about}: {line.text}")

    if follow:
        with reach(ControlClient, server, identity, token_file) as control:
            show(control.watch(run))
    else:
        with reach(ResultsClient, server, identity, token_file) as results:
            show(results.logs(run))


def delete(
    run: RunId,
    server: Server = None,
    identity: IdentityFolder = None,
    token_file: TokenFile = None,
) -> None:
    """Delete a run from a server, with its model, records and checkpoints. It must have ended."""
    from fedloom.client.results import ResultsClient

    with reach(ResultsClient, server, identity, token_file) as results:
        print_line(f"{run} was {results.delete(run)}, and is deleted")
