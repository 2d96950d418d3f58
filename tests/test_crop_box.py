"""nerfstudio's crop box on the student's views."""

import numpy as np
import pytest
import torch
from builders import camera_at, constant_model
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.model_components.renderers import background_color_override_context

from mobiler2l_ns.student.crop_box import box_mask

RED = torch.tensor([1.0, 0.0, 0.0])


@pytest.mark.parametrize(("centre", "kept"), [(0.0, True), (0.5, True), (1.0, False), (-1.0, False)])
def test_the_crop_box_keeps_surfaces_inside(centre, kept):
    """A wall at z = 4, in the origin; a box of side 1.2 is moved along the optical axis (0.6, 0, 0.8)."""
    camera = camera_at(4.0)
    position = (0.6 * centre, 0.0, 0.8 * centre)
    box = OrientedBox.from_params(position, (0.0, float(np.arctan2(0.6, 0.8)), 0.0), (1.2, 1.2, 1.2))
    with background_color_override_context(RED):
        outputs = constant_model(0.2, 0.4, 0.6, 1.0, 0.5).get_outputs_for_camera(camera, obb_box=box)
    assert bool(outputs["accumulation"][16, 24] > 0.99) is kept
    expected = torch.tensor([0.2, 0.4, 0.6]) if kept else RED
    assert torch.allclose(outputs["rgb"][16, 24], expected, atol=1e-4)
    assert outputs["rgb"][0, 0].tolist() == [1, 0, 0]  # its ray misses the box
    # Without depth whatever is seen through the box stays.
    assert box_mask(camera, box, None)[16, 24] == 1
