"""The microscope: one block of a CUDA kernel, as the host runner executed it, on a page (docs/kernels/microscope.md).

A `Recording` is what the runner wrote down, a `Timeline` lays it out in steps, `page` and `picture` draw it. The
command is `python -m flagattn.testing.microscope`.
"""

from flagattn.testing.microscope.page import page
from flagattn.testing.microscope.picture import picture
from flagattn.testing.microscope.recording import Access, Event, Race, Recording
from flagattn.testing.microscope.timeline import Flight, Phase, Span, Timeline

__all__ = ["Access", "Event", "Flight", "Phase", "Race", "Recording", "Span", "Timeline", "page", "picture"]
