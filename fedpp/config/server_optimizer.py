"""Server optimizer configuration: how the mean update of a round moves the global model.

`fedpp.aggregation.server_step` takes the step, with the sources of each.
"""

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from fedpp.values import Declared, Flat, number

ServerOptimizer = Literal["fedavg", "fedavgm", "fedadam", "fedyogi"]

SERVER_OPTIMIZERS: tuple[ServerOptimizer, ...] = get_args(ServerOptimizer)
SERVER_NAMES = Flat("server_", {"name": "server_optimizer"})  # of these settings beside others


@dataclass(frozen=True)
class ServerOptimizerConfig(Declared, label="server optimizer"):
    """The optimizer and its constants; those that it does not use are kept, and change nothing."""

    name: Annotated[ServerOptimizer, "how the mean update of a round moves the global model"] = "fedavg"
    learning_rate: Annotated[float, number(above=0), "factor of the mean update"] = 1.0
    momentum: Annotated[float, number(least=0, below=1), "beta of fedavgm, beta_1 of fedadam and fedyogi"] = 0.9
    beta_2: Annotated[float, number(least=0, below=1), "of fedadam and fedyogi"] = 0.99
    tau: Annotated[float, number(above=0), "of fedadam and fedyogi"] = 0.001

    @property
    def moments(self) -> tuple[str, ...]:
        """Return the names of the moments that the optimizer keeps between rounds."""
        return {"fedavg": (), "fedavgm": ("first",)}.get(self.name, ("first", "second"))
