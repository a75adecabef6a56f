"""ClientApp that returns the arrays multiplied by a factor: Flower does not send equal arrays a second time."""

from typing import cast

import keras
import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, _: Context) -> Message:
    """Return other arrays of the same size."""
    factor = np.float32(keras.backend.epsilon() + np.random.default_rng().uniform(0.5, 1.5))
    received = cast("ArrayRecord", message.content["arrays"])
    arrays = [factor * array for array in received.to_numpy_ndarrays()]
    metrics = MetricRecord({"num-examples": 1})
    return Message(RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, _: Context) -> Message:
    """Return a metric."""
    return Message(RecordDict({"metrics": MetricRecord({"num-examples": 1, "loss": 1.0})}), reply_to=message)
