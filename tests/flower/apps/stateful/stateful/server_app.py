"""A loop of the app's own: a query, then rounds of two actions, with push and pull."""

import random

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


def ask(grid: Grid, kind: str, weights: np.ndarray, extra: dict) -> list[RecordDict]:
    """One message to every node; the replies by node."""
    content = RecordDict({"global": ArrayRecord({"w": Array(weights)}), "extra": ConfigRecord(extra)})
    messages = [Message(content, dst_node_id=node, message_type=kind) for node in grid.get_node_ids()]
    ids = grid.push_messages(messages)
    replies = {}
    while len(replies) < len(messages):
        for reply in grid.pull_messages(ids):
            replies[reply.metadata.src_node_id] = reply.content
    return [replies[node] for node in sorted(replies)]


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Average what is shared, add a little noise of the server's own."""
    weights = np.zeros(context.run_config["model.size"])
    speeds = [each["properties"]["speed"] for each in ask(grid, "query", weights, {"raw": b"\x01"})]
    for number in range(1, context.run_config["rounds-to-do"] + 1):
        replies = ask(grid, "train.personal", weights, {"server-round": number})
        weights = np.mean([each["shared"]["w"].numpy() for each in replies], axis=0) + random.random() * speeds[0]
        ask(grid, "evaluate.both", weights, {"server-round": number})
