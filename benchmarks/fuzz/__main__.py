"""Every message of the services, broken in every way: `python -m benchmarks.fuzz` sends a hundred thousand of them.

Sound messages are encoded, then bytes are flipped, cut out, put in and exchanged, numbers made huge and texts absurd; a
call that wants one message gets none, or several, and a stream any number of batches;
certificate requests are broken, or ask for what is not theirs. They are sent over gRPC, as raw bytes, to two servers in
processes of their own, each with an exchange open: one whose callers share a secret, and one with members. Each must be
answered with a status of the catalogue (or taken, where it is still sound); no certificate may give more than its
token; nothing that was there before may change: runs, nodes, members, tokens, files. Memory is read all along.

Beside them, without a server: texts that lead somewhere in every setting of every plug-in, judged as server and
node do (`settings`), and descriptions of data as a node's policy lets them leave (`disclosure`).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.fuzz.disclosure import fuzz_disclosure
from benchmarks.fuzz.play import fuzz
from benchmarks.fuzz.settings import SettingsFuzz
from benchmarks.report import micro_table


def table(kind: str, found: Mapping[str, Any]) -> str:
    """The answers to each call of a server, and the server afterwards."""
    kinds = sorted({kind for call in found["calls"].values() for kind in call} - {"sent", "wrong"})
    rows = [
        {"call": name, "sent": call["sent"], **{kind: call.get(kind, 0) for kind in kinds}, "wrong": len(call["wrong"])}
        for name, call in found["calls"].items()
    ]
    rss = found["rss_mb"]
    title = f"server with {kind}: {found['sent']} broken messages in {found['seconds']:.0f} s"
    reported = [micro_table(title, rows)]
    reported += [f"  {name}: {text}" for name, call in found["calls"].items() for text in call["wrong"][:3]]
    reported += [f"  {text}" for text in found["changed"][:10]]
    reported.append(
        f"  the server {'lives' if found['alive'] else 'DIED'}; {rss[0]:.0f} MB resident after the first slice, "
        f"{rss[len(rss) // 2]:.0f} MB halfway, {rss[-1]:.0f} MB at the end; it holds {found['held']}"
    )
    return "\n".join(reported)


def kept(found: Mapping[str, Any]) -> bool:
    """Whether a server did as it should."""
    wrong = any(call["wrong"] for call in found["calls"].values())
    return found["alive"] and not found["changed"] and not wrong


def functions(count: int, seed: int) -> Mapping[str, Sequence[str]]:
    """Fuzz what needs no server; returns what went wrong, by target."""
    with tempfile.TemporaryDirectory(prefix="fedloom-fuzz-") as folder:
        return {"settings": SettingsFuzz(Path(folder)).run(count, seed), "disclosure": fuzz_disclosure(count, seed)}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    found = fuzz(options.count, options.seed, lambda line: print(line, file=sys.stderr, flush=True))
    print("\n".join(table(kind, each) for kind, each in found.items()))
    wrong = functions(options.count // 50, options.seed)
    for kind, texts in wrong.items():
        print(f"{kind}: {options.count // 50} inputs, {len(texts)} wrong")
        for text in texts[:10]:
            print(f"  {text}")
    if options.json is not None:
        options.json.write_text(json.dumps(found) + "\n", encoding="utf-8")
    return 0 if all(kept(each) for each in found.values()) and not any(wrong.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
