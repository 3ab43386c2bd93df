"""Train a LoRA: `python train.py [group=option] [key=value]`, or `--help`."""

from loralab.app.entry import main

if __name__ == "__main__":
    main()
