"""Objects that several test modules build."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, ClassVar, Optional

from mobiler2l_ns.teacher.adoption import Adoption
from mobiler2l_ns.teacher.frozen import TeacherConfig


@dataclass
class StubTeacherConfig(TeacherConfig):
    """Plugs a teacher of a test's own into the datamanager.

    The teacher is an attribute of the class, so that it is in no config.yml.
    """

    load: ClassVar[Optional[Callable[[], Any]]] = None

    def setup(self, device):
        """The test's teacher."""
        return type(self).load()

    def find(self, data, dataparser, device) -> Adoption:
        """Nothing is looked for."""
        return Adoption(dataparser, False)


def stub_teacher_config(teacher, folder: Path) -> StubTeacherConfig:
    """The config of a teacher whose run would lie in a folder, and which a function returns if it is one.

    Args:
        teacher: The teacher.
        folder: The folder of its run, which need not exist.
    """
    StubTeacherConfig.load = staticmethod(lambda: teacher)
    return StubTeacherConfig(load_config=folder / "config.yml")
