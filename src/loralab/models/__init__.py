"""Model families behind one call signature; the only home of diffusers and transformers."""
