"""The demo scene: its shapes, a ray tracer, cameras and the files of a capture."""
