"""A picture as text: small enough for the metadata of a file."""

from __future__ import annotations

import base64
import io

from PIL import Image
from torch import Tensor

from loralab.data.contact_sheet import to_image

QUALITY = 85  # of JPEG, 0 to 95


def data_url(picture: Tensor, side: int) -> str:
    """Return a picture as a JPEG in a ``data:`` URL.

    Args:
        picture: (3, H, W) in [0, 1].
        side: Longest side of the result in px; smaller pictures keep their size.
    """
    image, content = to_image(picture), io.BytesIO()
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    image.save(content, format="JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"
