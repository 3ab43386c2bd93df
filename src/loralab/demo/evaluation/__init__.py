"""What the eye sees in drawings of the demo, in figures: the right subject, the right style.

Drawings are compared with real icons by fixed procedures that know nothing of any LoRA. How a
picture becomes comparable is in `loralab.demo.icons`.
"""
