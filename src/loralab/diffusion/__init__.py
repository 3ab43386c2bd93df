"""The diffusion objective: schedule, noise, timesteps, weighting, loss. Knows no model."""
