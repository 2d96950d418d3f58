"""Teachers: any trained nerfstudio run, frozen; and the teacher methods of this plugin."""
