"""LoRA adapters: injection, state and files; the only home of PEFT."""
