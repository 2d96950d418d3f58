"""The methods that nerfstudio finds: instances only, so no saved config.yml ever names this package."""

from mobiler2l_ns.compat import allow_numpy_scalars, refuse_former_runs, survive_ended_processes

from .student import mobiler2l, mobiler2l_compact, mobiler2l_paper, mobiler2l_small, r2l
from .teacher import mobiler2l_teacher, mobiler2l_teacher_ngp, mobiler2l_teacher_small, mobiler2l_teacher_splat

__all__ = [
    "mobiler2l",
    "mobiler2l_compact",
    "mobiler2l_paper",
    "mobiler2l_small",
    "mobiler2l_teacher",
    "mobiler2l_teacher_ngp",
    "mobiler2l_teacher_small",
    "mobiler2l_teacher_splat",
    "r2l",
]

allow_numpy_scalars()
refuse_former_runs()
survive_ended_processes()
