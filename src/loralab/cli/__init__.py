"""The tools around training: `loralab COMMAND`, one file a command."""
