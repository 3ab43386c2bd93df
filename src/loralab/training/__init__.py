"""The Lightning side: module, data module, loaders, schedules and callbacks."""
