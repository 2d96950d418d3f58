"""What the student adds to nerfstudio's viewer."""
