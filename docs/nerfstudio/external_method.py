"""Entry for nerfstudio/configs/external_methods.py. Paste everything below the import; see README.md."""

from nerfstudio.configs.external_methods import ExternalMethod, external_methods

# MobileR2L
external_methods.append(
    ExternalMethod(
        """[bold yellow]MobileR2L[/bold yellow]
For more information visit: https://docs.nerf.studio/nerfology/methods/mobiler2l.html

To enable MobileR2L, you must install it first by running:
  [grey]pip install "mobiler2l-ns\\[export] @ git+REPOSITORY_URL"[/grey]""",
        configurations=[
            ("mobiler2l", "MobileR2L. Neural light field for phones and browsers, distilled from a nerfstudio run"),
            ("mobiler2l-compact", "MobileR2L. Network of a seventh of the work, for browsers and slower phones"),
            ("mobiler2l-small", "MobileR2L. Small network for a CPU"),
            ("mobiler2l-paper", "MobileR2L. Published recipe, as a baseline"),
            ("r2l", "R2L. Predecessor of MobileR2L, one ray for each pixel"),
            ("mobiler2l-teacher", "MobileR2L. Nerfacto as a teacher"),
            ("mobiler2l-teacher-small", "MobileR2L. Small nerfacto as a teacher, for a CPU"),
            ("mobiler2l-teacher-ngp", "MobileR2L. Instant-NGP as a teacher"),
            ("mobiler2l-teacher-splat", "MobileR2L. Splatfacto as a teacher"),
        ],
        pip_package='"mobiler2l-ns[export] @ git+REPOSITORY_URL"',
    )
)
