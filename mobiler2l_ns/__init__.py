"""Neural light fields for phones, distilled from any nerfstudio radiance field.

Rooms, in the order of the data flow::

    teacher/    a trained nerfstudio run, frozen, renders views from new poses
    data/       the pool of these views, the photos, and batches of patches: rays and target pixels
    student/    sampler -> embedder -> network: one pass from a grid of rays to a view (torch only)
    training/   losses, metrics, optimizers, schedules, fine-tuning
    export/     the student as ONNX files, a web page and a Core ML package, each checked against torch
    viewer/     what the student adds to nerfstudio's viewer

``datamanager``, ``model``, ``pipeline`` and ``trainer`` are nerfstudio's four roles. ``cameras`` alone turns
nerfstudio's rays into the student's.
"""

__version__ = "0.2.0"
