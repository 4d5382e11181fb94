"""Clients with custom actions, a setting of their node, a memory, and a mod."""

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

ALIVE = []


def stamp_mod(msg: Message, context: Context, call_next) -> Message:
    """Count the messages in the client's state, and say so in every reply."""
    seen = context.state.get("seen", MetricRecord({"messages": 0}))
    seen["messages"] += 1
    context.state["seen"] = seen
    reply = call_next(msg, context)
    if reply.has_content():
        reply.content["stamp"] = ConfigRecord({"messages": seen["messages"], "kind": msg.metadata.message_type})
    return reply


app = ClientApp(mods=[stamp_mod])


@app.lifespan()
def lifespan(context: Context):
    """Open and close something around every message."""
    ALIVE.append(context.node_id)
    yield
    ALIVE.remove(context.node_id)


@app.query()
def properties(msg: Message, context: Context) -> Message:
    """What this node is."""
    config = ConfigRecord({"speed": context.node_config["speed"], "raw": b"\x00\xff", "alive": len(ALIVE)})
    return Message(RecordDict({"properties": config}), reply_to=msg)


@app.train("personal")
def personal(msg: Message, context: Context) -> Message:
    """Move towards noise of the global generator; keep a vector that only this client has."""
    weights = msg.content["global"]["w"].numpy()
    mine = context.state["mine"]["v"].numpy() if "mine" in context.state else np.zeros(3, np.float64)
    mine = mine + context.node_config["partition-id"] + np.random.rand(3)  # noqa: NPY002 - what apps do
    context.state["mine"] = ArrayRecord({"v": Array(mine)})
    step = context.run_config["step"] * context.node_config["speed"]
    content = RecordDict(
        {
            "shared": ArrayRecord({"w": Array(weights + step * np.random.randn(*weights.shape))}),  # noqa: NPY002
            "head": ArrayRecord({"b": Array(mine.astype(np.float32))}),
            "metrics": MetricRecord({"num-examples": 10, "loss": float(mine.sum()), "curve": [0.5, 0.25]}),
        }
    )
    return Message(content, reply_to=msg)


@app.evaluate("both")
def both(msg: Message, context: Context) -> Message:
    """Compare what is shared with what is one's own."""
    distance = float(np.abs(msg.content["global"]["w"].numpy() - context.state["mine"]["v"].numpy()).sum())
    return Message(RecordDict({"metrics": MetricRecord({"num-examples": 5, "distance": distance})}), reply_to=msg)


@app.train("broken")
def broken(msg: Message, context: Context) -> Message:
    """Fail as apps do."""
    raise ZeroDivisionError("the app's own bug")
