"""One CLIP text encoder with its tokenizer: captions to token states."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from loralab.models.frozen_memory import FrozenMemory
from loralab.models.modes import eval_mode
from loralab.models.prompt_weights import parse_weights
from loralab.models.tokens import Entry, join_rows, split_rows


class EncodedText(NamedTuple):
    """What one encoder makes of captions: states (B,L,D), and (B,P) of the end if it projects."""

    states: Tensor
    pooled: Tensor | None


class ClipEncoder(nn.Module):
    """Tokenize and encode captions with one CLIP text encoder.

    A frozen encoder without adapter is run once per caption text and remembered, outside autocast
    and one caption at a time, so that the result depends on the text alone: not on the batch it
    first came in, nor on where a resumed run began. It runs in eval mode. An encoder in training
    is run on whole batches, with gradients, and nothing is remembered.

    Args:
        tokenizer: None where tokens are recorded.
        layer: Which layer is read: 1 the last, n the n-th from the end.
        final_norm: Send it through the last norm, as SD1 and SD2 tools do; SDXL's do not.
        pooled: Also give the projected state of the caption's first end token.
        rows: Rows of tokens a caption is cut or padded to.
        prompt_weights: Multiply the states of words by the weights written in the caption.
        memory_bytes: Most that is remembered; shuffled tags make new texts without end.
    """

    def __init__(
        self,
        tokenizer: CLIPTokenizer | None,
        model: CLIPTextModel | CLIPTextModelWithProjection,
        *,
        layer: int = 1,
        final_norm: bool = True,
        pooled: bool = False,
        rows: int = 1,
        prompt_weights: bool = False,
        memory_bytes: int = 256 * 2**20,
    ) -> None:
        super().__init__()
        self.tokenizer: Any = tokenizer
        self.model: Any = model
        self.layer = layer
        self.final_norm = final_norm
        self.pooled = pooled
        self.rows = rows
        self.prompt_weights = prompt_weights
        self.row_length: int = model.config.max_position_embeddings
        self.memory: FrozenMemory[EncodedText] = FrozenMemory(memory_bytes)

    def encode(self, captions: Sequence[str], *, tokens: Tensor | None = None) -> EncodedText:
        """Return the captions' states; "" gives the unconditional ones.

        Args:
            tokens: (B,N,R) recorded tokens, used in place of the captions.
        """
        is_frozen = self.memory.renew(self.model)
        if not is_frozen and self._is_trainable:
            if tokens is not None:
                return self._run(tokens)
            return self._run(self.tokenize(captions), self.weights(captions))
        # Validation runs in inference mode; what is made there could not be used in training.
        with torch.inference_mode(False), torch.no_grad():
            if tokens is not None:
                texts = [self._exact(caption[None]) for caption in tokens]
            elif is_frozen:
                texts = [self.memory.recall(c, partial(self._read, c)) for c in captions]
            else:  # an adapter that is switched on and off changes the result
                texts = [self._read(caption) for caption in captions]
        pooled = [text.pooled for text in texts if text.pooled is not None]
        return EncodedText(
            torch.cat([text.states for text in texts]), torch.cat(pooled) if pooled else None
        )

    def tokenize(self, captions: Sequence[str]) -> Tensor:
        """Return token numbers (B,N,R) int64 on the CPU, cut or padded to N rows."""
        tokenizer = self.tokenizer
        begin, end, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
        words = ([token for token, _ in self._words(caption)] for caption in captions)
        return torch.tensor([self._split(line, begin, end, pad) for line in words])

    def weights(self, captions: Sequence[str]) -> Tensor | None:
        """Return the weight of every token (B,N,R) float32; None where all are 1."""
        if not self.prompt_weights:
            return None
        words = ([weight for _, weight in self._words(caption)] for caption in captions)
        return torch.tensor([self._split(line, 1.0, 1.0, 1.0) for line in words])

    def _split(self, line: Sequence[Entry], begin: Entry, end: Entry, pad: Entry) -> Any:
        return split_rows(
            line, begin=begin, end=end, pad=pad, rows=self.rows, row_length=self.row_length
        )

    def _words(self, caption: str) -> list[tuple[int, float]]:
        """Return all token numbers of a caption with their weights, without start and end."""
        pieces = parse_weights(caption) if self.prompt_weights else [(caption, 1.0)]
        return [
            (token, weight)
            for text, weight in pieces
            for token in self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        ]

    @property
    def _is_trainable(self) -> bool:
        return any(parameter.requires_grad for parameter in self.model.parameters())

    def _read(self, caption: str) -> EncodedText:
        return self._exact(self.tokenize([caption]), self.weights([caption]))

    def _exact(self, tokens: Tensor, weights: Tensor | None = None) -> EncodedText:
        with torch.autocast(self._device.type, enabled=False), eval_mode(self.model):
            return self._run(tokens, weights)

    def _run(self, tokens: Tensor, weights: Tensor | None = None) -> EncodedText:
        """Return the states of tokens (B,N,R): row by row, weighed, then joined."""
        tokens = tokens.to(self._device)
        last_with_norm = self.layer == 1 and self.final_norm
        output = self.model(tokens.flatten(0, 1), output_hidden_states=not last_with_norm)
        if last_with_norm:
            states = output.last_hidden_state
        else:  # hidden_states[0] are the embeddings; [-1] is the last layer before its norm
            states = output.hidden_states[-self.layer]
            states = self._norm(states) if self.final_norm else states
        rows = states.unflatten(0, tokens.shape[:2])  # (B, N, R, D)
        if weights is not None:
            rows = rows * weights[..., None].to(rows)
        pooled = self._pool(output.last_hidden_state.unflatten(0, tokens.shape[:2]), tokens)
        return EncodedText(join_rows(rows), pooled)

    def _pool(self, states: Tensor, tokens: Tensor) -> Tensor | None:
        """Return the projected last state (B,P) at the first end token of the first row."""
        if not self.pooled:
            return None
        # transformers takes the highest token number instead where a config has eos_token_id 2.
        end = (tokens[:, 0] == self.tokenizer.eos_token_id).int().argmax(dim=1)
        pooled: Tensor = self.model.text_projection(
            states[torch.arange(len(tokens), device=states.device), 0, end]
        )
        return pooled

    @property
    def _norm(self) -> nn.LayerNorm:
        """transformers 5 dropped the level `text_model` from CLIPTextModel alone."""
        norm: nn.LayerNorm = getattr(self.model, "text_model", self.model).final_layer_norm
        return norm

    @property
    def _device(self) -> torch.device:
        return self._norm.weight.device
