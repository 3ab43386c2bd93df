"""Captions to what the UNet is conditioned on: CLIP hidden states of a chosen layer."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer


@dataclass
class Conditioning:
    """What the denoiser reads besides latents and timesteps.

    Attributes:
        hidden_states: (B,L,D).
        pooled: (B,P) for families that need it.
        time_ids: (B,6) for families that need it.
    """

    hidden_states: Tensor
    pooled: Tensor | None = None
    time_ids: Tensor | None = None


class ClipConditioner(nn.Module):
    """Tokenize and encode captions with one CLIP text encoder.

    A frozen encoder without adapter is run once per caption text and remembered, outside autocast
    and one caption at a time, so that the result depends on the text alone: not on the batch it
    first came in, nor on where a resumed run began. An encoder in training is run on whole
    batches, with gradients, and nothing is remembered.

    Args:
        clip_skip: 1 takes the last layer, n the n-th from the end. The final layer norm is applied
            to whichever is taken, as all SD1 tools do.
        max_tokens: Length that captions are cut or padded to, start and end tokens included.
        memo_size: Captions remembered at most; shuffled tags make new texts without end.
    """

    def __init__(
        self,
        tokenizer: CLIPTokenizer,
        encoder: CLIPTextModel,
        *,
        clip_skip: int = 1,
        max_tokens: int = 77,
        memo_size: int = 1024,
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.encoder = encoder
        self.clip_skip = clip_skip
        self.max_tokens = max_tokens
        self.memo_size = memo_size
        self._memo: OrderedDict[str, Tensor] = OrderedDict()
        self._memo_place: tuple[torch.device, torch.dtype] | None = None

    def encode(self, captions: Sequence[str], *, input_ids: Tensor | None = None) -> Conditioning:
        """Return hidden states (B,L,D) of the captions; "" gives the unconditional ones.

        Args:
            input_ids: (B,L) recorded tokens, used in place of the captions.
        """
        trainable = any(parameter.requires_grad for parameter in self.encoder.parameters())
        if not self._remembers(trainable):
            self._memo.clear()
        if trainable:
            ids = self.tokenize(captions) if input_ids is None else input_ids
            return Conditioning(self._hidden_states(ids.to(self._device)))
        # Validation runs in inference mode; what is made there could not be used in training.
        with torch.inference_mode(False), torch.no_grad():
            if input_ids is not None:
                rows = [self._exact(row[None]) for row in input_ids]
            else:
                rows = [self._recall(caption) for caption in captions]
            return Conditioning(torch.cat(rows))

    def tokenize(self, captions: Sequence[str]) -> Tensor:
        """Return token ids (B,L) int64 on the CPU, cut or padded to ``max_tokens``."""
        ids: Tensor = self.tokenizer(
            list(captions),
            padding="max_length",
            truncation=True,
            max_length=self.max_tokens,
            return_tensors="pt",
        ).input_ids
        return ids

    def truncated(self, captions: Sequence[str]) -> list[str]:
        """Return the captions that do not fit into ``max_tokens`` and lose their end."""
        return [
            caption
            for caption in captions
            if len(self.tokenizer(caption, verbose=False).input_ids) > self.max_tokens
        ]

    def _recall(self, caption: str) -> Tensor:
        if not self._remembers(False):  # an adapter that is switched on and off changes the result
            return self._exact(self.tokenize([caption]))
        place = (self._device, self.encoder.dtype)
        if place != self._memo_place:
            self._memo.clear()
            self._memo_place = place
        if caption not in self._memo:
            self._memo[caption] = self._exact(self.tokenize([caption]))
            if len(self._memo) > self.memo_size:
                self._memo.popitem(last=False)
        self._memo.move_to_end(caption)
        return self._memo[caption]

    def _remembers(self, trainable: bool) -> bool:
        return not trainable and not getattr(self.encoder, "_hf_peft_config_loaded", False)

    def _exact(self, ids: Tensor) -> Tensor:
        with torch.autocast(self._device.type, enabled=False):
            return self._hidden_states(ids.to(self._device))

    def _hidden_states(self, ids: Tensor) -> Tensor:
        """Return LN_final(h[L + 1 - clip_skip]), (B,L,D), where h[0] are the embeddings."""
        if self.clip_skip == 1:
            last: Tensor = self.encoder(ids).last_hidden_state
            return last
        states = self.encoder(ids, output_hidden_states=True).hidden_states
        normed: Tensor = self.encoder.final_layer_norm(states[-self.clip_skip])
        return normed

    @property
    def _device(self) -> torch.device:
        return self.encoder.final_layer_norm.weight.device
