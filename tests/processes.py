"""Functions on several processes that talk through gloo."""

import gc
import os
from datetime import timedelta

from torch import distributed, multiprocessing


def on_ranks(function, directory, num_ranks=2):
    """Call ``function(rank, directory)`` on so many processes."""
    multiprocessing.spawn(_of_a_rank, (function, str(directory), num_ranks), nprocs=num_ranks)


def _of_a_rank(rank, function, directory, num_ranks):
    os.environ["OMP_NUM_THREADS"] = "1"
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{directory}/rendezvous",
        rank=rank,
        world_size=num_ranks,
        timeout=timedelta(minutes=5),
    )
    function(rank, directory)
    # A replica that outlives the group, or a peer that has left, makes the farewell wait for ever.
    gc.collect()
    distributed.barrier()
    distributed.destroy_process_group()
