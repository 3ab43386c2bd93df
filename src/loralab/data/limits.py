"""Which images are too small or too large to be worth training on."""

from __future__ import annotations

from dataclasses import dataclass

from loralab.data.crop import CropPlan


@dataclass(frozen=True)
class SizeLimits:
    """Limits of image sizes in px; None sets no limit.

    Attributes:
        min_side: Least shorter side.
        max_side: Greatest longer side.
        min_area: Least width times height.
        max_upscale: Greatest factor by which an image is enlarged to fill its bucket.
    """

    min_side: int | None = None
    max_side: int | None = None
    min_area: int | None = None
    max_upscale: float | None = None

    def broken_by(self, height: int, width: int, plan: CropPlan) -> str | None:
        """Return what is wrong with an image of this size, or None; the subject is to be added."""
        scale = max(plan.resized[0] / height, plan.resized[1] / width)
        key, size = "data.image_filter", f"is {width} x {height} px"
        if self.min_side is not None and min(height, width) < self.min_side:
            return f"{size}; {key}.min_side is {self.min_side}."
        if self.max_side is not None and max(height, width) > self.max_side:
            return f"{size}; {key}.max_side is {self.max_side}."
        if self.min_area is not None and height * width < self.min_area:
            return f"{size}, which is {height * width}; {key}.min_area is {self.min_area}."
        if self.max_upscale is not None and scale > self.max_upscale:
            return (
                f"{size} and would be enlarged {scale:.2f} times; {key}.max_upscale is "
                f"{self.max_upscale:g}."
            )
        return None
