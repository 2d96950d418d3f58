"""Several processes, one a GPU: what each takes of a total, and what all must agree on.

Ranks are global, over all machines. All processes must call these functions in the same order; a single process never
communicates.
"""

from functools import lru_cache
from typing import Callable, List, TypeVar

import torch.distributed as dist
from nerfstudio.utils import comms

T = TypeVar("T")


def local_share(total: int) -> int:
    """This process's part of a total over all processes; where it does not divide, the first ranks take one more."""
    size = comms.get_world_size()
    return total // size + (comms.get_rank() < total % size)


def broadcast_from_main(decide: Callable[[], T]) -> T:
    """What ``decide`` returns in the main process, in every process; the others do not call it."""
    if comms.get_world_size() == 1:
        return decide()
    answer = [decide() if comms.is_main_process() else None]
    dist.broadcast_object_list(answer, src=0, group=_host_group())
    return answer[0]


def gather(value: T) -> List[T]:
    """The values of all processes in order of rank, in every process."""
    if comms.get_world_size() == 1:
        return [value]
    values = [None] * comms.get_world_size()
    dist.all_gather_object(values, value, group=_host_group())
    return values


@lru_cache(maxsize=1)
def _host_group() -> dist.ProcessGroup:
    # Messages between hosts must not wait for the work that is queued on a GPU, as NCCL's would.
    return dist.new_group(backend="gloo")
