"""From photos or a video to a posed capture, as ns-process-data writes it, without COLMAP's and ffmpeg's programs."""
