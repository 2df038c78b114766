from typing import Any, Iterator, Tuple

from torch import Tensor

from torch_geometric_ext.lottery.weights.channel_selection import Channels
from torch_geometric_ext.sparsity import RigL


class ChannelRigL(RigL):
    """Lets weights move within the channels that are left.

    Args:
        *args (optional): As in :class:`~torch_geometric_ext.sparsity.RigL`.
        channels (Channels): Where weights may be.
        **kwargs (optional): As in
            :class:`~torch_geometric_ext.sparsity.RigL`.
    """

    def __init__(self, *args: Any, channels: Channels, **kwargs: Any) -> None:
        self.channels = channels
        super().__init__(*args, **kwargs)

    def _num_positions(self, name: str) -> int:
        return self.channels.num_weights(name)

    def _scores(self, name: str) -> Iterator[Tuple[int, Tensor]]:
        rows, cols = self.channels.rows[name], self.channels.cols[name]
        for begin, score in super()._scores(name):
            first = begin // cols.numel()
            block = score.view(-1, cols.numel())
            kept = rows[first : first + block.size(0), None] & cols
            # The largest score tells whether all are finite, and stays:
            yield begin, score.masked_fill_(~kept.flatten(), -1)
