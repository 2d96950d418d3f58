"""Neural light fields for phones, distilled from any nerfstudio radiance field.

How data flows, file by file::

    poses -> teacher -> pool -> datamanager        rays and target pixels of fresh teacher views and real photos
    sampler -> embedder -> network                 the student: one pass from a grid of rays to an image (torch only)
    losses, metrics -> model                       the student as a nerfstudio Model
    onnx_files -> verification -> export           the student as ONNX files, each checked against torch

``cameras`` is the only place where nerfstudio's rays are turned into the student's.
"""

__version__ = "0.1.0"
