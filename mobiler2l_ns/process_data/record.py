"""``process.json``: what a capture is made of, and how far it is."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional

from mobiler2l_ns.errors import UserError
from mobiler2l_ns.files import write_json
from mobiler2l_ns.process_data.photos import Photo
from mobiler2l_ns.process_data.report import PoseReport

RECORD = "process.json"


@dataclass
class Record:
    """``process.json``: what the capture is made of, and how far it is.

    Attributes:
        source: The user's folder or video.
        files: Size in bytes and time of change of each of its files; a changed source is another capture.
        photo_options: The options that decide how the photos are copied.
        pose_options: The options that decide the poses.
        photos: The photos, once all are copied.
        seconds: Time that each step took.
        report: The figures, once the capture is complete.
    """

    source: str
    files: Dict[str, List[float]]
    photo_options: Dict[str, Any]
    pose_options: Dict[str, Any]
    photos: List[Photo] = field(default_factory=list)
    seconds: Dict[str, float] = field(default_factory=dict)
    report: Optional[PoseReport] = None

    @classmethod
    def read(cls, path: Path) -> "Record":
        """The record in a file.

        Raises:
            UserError: The file is damaged.
        """
        try:
            found = cls(**json.loads(path.read_text()))
            found.photos = [Photo(**photo) for photo in found.photos]  # type: ignore[arg-type]
            found.report = PoseReport(**found.report) if found.report else None  # type: ignore[arg-type]
        except (OSError, ValueError, TypeError) as error:
            raise UserError(
                f"{path} cannot be read ({error}): delete the folder, or pass another --output-dir."
            ) from error
        return found

    def write(self, path: Path) -> None:
        """Writes the record; an interrupted write leaves the old one."""
        write_json(path, asdict(self))
