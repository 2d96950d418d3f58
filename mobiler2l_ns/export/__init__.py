"""A trained student as verified files for onnxruntime, Lens Studio, browsers and CoreML."""
