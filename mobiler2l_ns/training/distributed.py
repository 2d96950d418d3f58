"""Distributed training, one process per GPU: shares of a total, and values that all processes must agree on.

Ranks are global, over all machines. All processes must call these functions in the same order. A single process does
not communicate.
"""

from functools import lru_cache
from typing import Any, Callable, List, TypeVar

import torch.distributed as dist
from nerfstudio.utils import comms

T = TypeVar("T")


def local_share(total: int) -> int:
    """This process's share of a total; if the number of processes does not divide it, the first ranks take one more."""
    size = comms.get_world_size()
    return total // size + (comms.get_rank() < total % size)


def broadcast_from_main(decide: Callable[[], T]) -> T:
    """Calls ``decide`` in the main process only and returns its result in every process."""
    if comms.get_world_size() == 1:
        return decide()
    answer: List[Any] = [decide() if comms.is_main_process() else None]
    dist.broadcast_object_list(answer, src=0, group=_host_group())
    return answer[0]


def gather(value: T) -> List[T]:
    """The values of all processes, ordered by rank; in every process."""
    if comms.get_world_size() == 1:
        return [value]
    values: List[Any] = [None] * comms.get_world_size()
    dist.all_gather_object(values, value, group=_host_group())
    return values


@lru_cache(maxsize=1)
def _host_group() -> Any:
    # NCCL's messages would wait for the work that is queued on the GPU; gloo's do not.
    return dist.new_group(backend="gloo")
