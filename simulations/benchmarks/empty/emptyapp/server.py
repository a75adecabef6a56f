"""ServerApp with Flower's federated averaging, which writes the moments at which its rounds ended into a file."""

import json
import time
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds; write the moments of the start and of the end of each round."""
    config, moments = dict(context.run_config), list[float]()
    nodes = int(config["nodes"])

    def note(number: int, arrays: ArrayRecord) -> MetricRecord:
        del arrays
        moments.append(time.monotonic())
        return MetricRecord({"round": number})

    strategy = FedAvg(min_train_nodes=nodes, min_evaluate_nodes=nodes, min_available_nodes=nodes)
    model = np.random.default_rng(0).standard_normal(int(config["bytes"]) // 4, np.float32)
    result = strategy.start(grid, ArrayRecord([model]), num_rounds=int(config["rounds"]), evaluate_fn=note)
    replies = (len(result.train_metrics_clientapp), len(result.evaluate_metrics_clientapp))
    out = Path(str(config["out"]))
    out.with_suffix(".part").write_text(json.dumps({"moments": moments, "replies": replies}))
    out.with_suffix(".part").rename(out)
