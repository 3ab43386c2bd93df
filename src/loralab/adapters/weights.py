"""What an adapter file holds for one module, whatever the algorithm, and the update it means.

Tensors have the names that LyCORIS and kohya give them; other layouts are renamed to these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from loralab.errors import AdapterError, Problem

Tensors = Mapping[str, Tensor]
DOWN, UP, MID, DORA = "lora_down.weight", "lora_up.weight", "lora_mid.weight", "dora_scale"


@dataclass(frozen=True)
class Algorithm:
    """One way to write an update.

    Attributes:
        needed: Sets of tensors of which one must be there.
        allowed: Tensors that may be there beside these.
        rank: tensors -> rank, or None where the tensors do not say.
        update: (tensors, scale, base weight or None) -> update in float32 or float64, flat or not.
        needs_base: The update depends on the base's weight.
    """

    needed: tuple[frozenset[str], ...]
    allowed: frozenset[str]
    rank: Callable[[Tensors], int | None]
    update: Callable[[Tensors, float, Tensor | None], Tensor]
    needs_base: bool = False


@dataclass(frozen=True)
class ModuleWeights:
    """One module's tensors and its alpha.

    Attributes:
        tensors: By their kohya or LyCORIS name, e.g. ``lora_down.weight`` or ``hada_w1_a``.
        alpha: The constant of the scale alpha / rank, never the scale itself.
    """

    tensors: Tensors
    alpha: float

    @cached_property
    def algorithm(self) -> str:
        """The entry of ``ALGORITHMS`` that these tensors are complete for.

        Raises:
            AdapterError: None is.
        """
        for name, algorithm in ALGORITHMS.items():
            if any(needed <= self.tensors.keys() for needed in algorithm.needed):
                extra = self.tensors.keys() - algorithm.allowed - set().union(*algorithm.needed)
                if not extra:
                    is_butterfly = name == "oft" and self.tensors["oft_blocks"].dim() == 4
                    return "boft" if is_butterfly else name
        found = ", ".join(sorted(self.tensors))
        raise AdapterError(Problem("tensors", f"[{found}] are not a complete adapter"))

    @property
    def rank(self) -> int | None:
        """Rank of the factors; None for kinds whose tensors have none."""
        return ALGORITHMS[self.algorithm].rank(self.tensors)

    @property
    def scale(self) -> float:
        """What the product of the factors is multiplied by; OFT's largest rotation, 0 is any."""
        if ALGORITHMS[self.algorithm].needs_base:
            return self.alpha
        return self.alpha / self.rank if self.rank else 1.0

    @property
    def is_plain(self) -> bool:
        """Whether the update is exactly ``scale * up @ down``."""
        return self.tensors.keys() == {DOWN, UP}

    @property
    def is_product(self) -> bool:
        """Whether the update is exactly the product of ``factors``: plain and Tucker's LoRA."""
        return self.tensors.keys() >= {DOWN, UP} and self.tensors.keys() <= {DOWN, MID, UP}

    @property
    def down(self) -> Tensor:
        """(rank, in) or (rank, in, kh, kw) of the LoRA kinds."""
        return self.tensors[DOWN]

    @property
    def up(self) -> Tensor:
        """(out, rank) or (out, rank, 1, 1) of the LoRA kinds."""
        return self.tensors[UP]

    @property
    def fan_in(self) -> torch.Size:
        """(in,) or (in, kh, kw) of the update of the LoRA kinds."""
        kernel = self.tensors.get(MID, self.down).shape[2:]
        return torch.Size((self.down.shape[1], *kernel))

    def factors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return (out, rank) with the scale folded in, and (rank, in * kh * kw); DoRA's no more."""
        up = self.up.detach().flatten(1).to(dtype) * self.scale
        down = self.down.detach().flatten(1).to(dtype)
        if MID in self.tensors:  # Tucker: (r, r, kh, kw) between two 1x1 factors
            core = self.tensors[MID].detach().to(dtype)
            down = torch.einsum("rs...,sj->rj...", core, down).flatten(1)
        return up, down

    def delta(
        self,
        base: Tensor | None = None,
        *,
        shape: torch.Size | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Return the update of the base's weight.

        Args:
            base: The weight it is added to; needed by DoRA, OFT and BOFT. The update is formed on
                its device.
            shape: Of the result when the base is not given; else as the factors give it.
            dtype: Of the computation and the result.

        Raises:
            AdapterError: The base is needed and missing, or the shapes do not fit.
        """
        algorithm = ALGORITHMS[self.algorithm]
        if base is None and (algorithm.needs_base or DORA in self.tensors):
            kind = "dora" if DORA in self.tensors else self.algorithm
            text = f"the update of {kind} depends on the base model; merge it into a base instead"
            raise AdapterError(Problem("base", text))
        place = None if base is None else base.device  # a file's tensors are on the CPU
        tensors = {name: t.detach().to(place, dtype) for name, t in self.tensors.items()}
        weight = None if base is None else base.detach().to(dtype)
        shape = shape if weight is None else weight.shape
        try:
            update = algorithm.update(tensors, self.scale, weight)
            update = update if shape is None else update.reshape(shape)
        except RuntimeError as error:
            sizes = ", ".join(f"{name} {tuple(t.shape)}" for name, t in self.tensors.items())
            wanted = "" if shape is None else f" a weight of {tuple(shape)}"
            raise AdapterError(Problem("shape", f"[{sizes}] do not fit{wanted}")) from error
        if DORA in tensors and weight is not None:
            update = _decomposed(weight + update, tensors[DORA]) - weight
        return update

    def add_to(self, weight: Tensor, base: Tensor, *, strength: float) -> None:
        """Add the update to a contiguous float32 weight in place; a LoRA's is not formed.

        Args:
            weight: What is added to.
            base: The weight that DoRA, OFT and BOFT start from.
            strength: Multiple of the update.

        Raises:
            AdapterError: The shapes do not fit.
        """
        if self.is_product:
            up, down = self.factors(torch.float32)
            rows = weight.view(len(weight), -1)
            if rows.shape == (len(up), down.shape[1]):
                rows.addmm_(up, down, alpha=strength)
                return
        weight.add_(self.delta(base), alpha=strength)


def _decomposed(weight: Tensor, magnitude: Tensor) -> Tensor:
    """Return the weight with these norms by output row (out, 1, ..), or by input (1, in, ..)."""
    by_output = magnitude.numel() == weight.shape[0] and magnitude.shape[0] == weight.shape[0]
    rows = weight if by_output else weight.transpose(0, 1)
    norms = rows.flatten(1).norm(dim=1).reshape(-1, *[1] * (weight.dim() - 1))
    scaled: Tensor = rows * (magnitude.reshape(norms.shape) / norms)
    return scaled if by_output else scaled.transpose(0, 1)


def _lora(t: Tensors, scale: float, base: Tensor | None) -> Tensor:
    up, down = t[UP].flatten(1), t[DOWN]
    if MID in t:
        inner = torch.einsum("rs...,sj->rj...", t[MID], down.flatten(1))
        return torch.einsum("ir,rj...->ij...", up, inner) * scale
    return ((up * scale) @ down.flatten(1)).reshape(up.shape[0], *down.shape[1:])


def _loha(t: Tensors, scale: float, base: Tensor | None) -> Tensor:
    halves = []
    for n in ("1", "2"):
        a, b = t[f"hada_w{n}_a"], t[f"hada_w{n}_b"]
        core = t.get(f"hada_t{n}")
        halves.append(a @ b if core is None else torch.einsum("rskl,sj,ri->ijkl", core, b, a))
    return halves[0] * halves[1] * scale


def _lokr(t: Tensors, scale: float, base: Tensor | None) -> Tensor:
    one, two = kronecker_factors(t)
    one = one.reshape(*one.shape, *[1] * (two.dim() - 2))
    return torch.kron(one, two.contiguous()) * scale


def kronecker_factors(t: Tensors) -> tuple[Tensor, Tensor]:
    """Return LoKr's (out1, in1) and (out2, in2) or (out2, in2, kh, kw), each multiplied out."""
    one = t["lokr_w1"] if "lokr_w1" in t else t["lokr_w1_a"] @ t["lokr_w1_b"]
    if "lokr_w2" in t:
        return one, t["lokr_w2"]
    if "lokr_t2" in t:
        w2 = torch.einsum("rskl,sj,ri->ijkl", t["lokr_t2"], t["lokr_w2_b"], t["lokr_w2_a"])
        return one, w2
    return one, t["lokr_w2_a"] @ t["lokr_w2_b"]


def _lokr_rank(t: Tensors) -> int | None:
    for name in ("lokr_w1_b", "lokr_w2_b"):
        if name in t:
            return int(t[name].shape[0])
    return None


def _oft(t: Tensors, scale: float, base: Tensor | None) -> Tensor:
    """(R - 1) W with one orthogonal block after another along the rows (Qiu et al. 2023)."""
    assert base is not None
    blocks = _cayley(t["oft_blocks"], scale * len(base))  # (num, size, size)
    rows = base.reshape(*blocks.shape[:2], -1)
    rotated = torch.einsum("knm,kn...->km...", blocks, rows).reshape(base.shape)
    return _rescaled(rotated, t) - base


def _boft(t: Tensors, scale: float, base: Tensor | None) -> Tensor:
    """Butterfly: several such rotations, each over rows of another order (Liu et al. 2024)."""
    assert base is not None
    stages = _cayley(t["oft_blocks"], scale * len(base))  # (stages, num, size, size)
    half = stages.shape[-1] // 2
    rotated = base
    for stage, blocks in enumerate(stages):
        gap, groups = 2**stage * half, base.shape[0] // (2**stage * half * 2)
        rows = rotated.reshape(groups, 2, gap, -1).transpose(1, 2).reshape(base.shape)
        rows = rows.reshape(*blocks.shape[:2], -1)
        turned = torch.einsum("bij,bj...->bi...", blocks, rows).reshape(groups, gap, 2, -1)
        rotated = turned.transpose(1, 2).reshape(base.shape)
    return _rescaled(rotated, t) - base


def _cayley(blocks: Tensor, limit: float) -> Tensor:
    """Return (1 + Q)(1 - Q)^-1 of the skew part Q, of at most this norm unless 0: orthogonal."""
    skew = blocks - blocks.mT
    if limit > 0:
        skew = skew * (limit / (skew.norm() + 1e-8)).clamp(max=1.0)
    one = torch.eye(blocks.shape[-1], dtype=blocks.dtype, device=blocks.device)
    rotation: Tensor = (one + skew) @ torch.linalg.inv(one - skew)
    return rotation


def _rescaled(weight: Tensor, t: Tensors) -> Tensor:
    return (
        weight * t["rescale"].reshape(-1, *[1] * (weight.dim() - 1)) if "rescale" in t else weight
    )


def _full(t: Tensors, scale: float, base: Tensor | None) -> Tensor:
    return t["diff"]


def _sets(*names: str) -> tuple[frozenset[str], ...]:
    return tuple(frozenset(name.split()) for name in names)


ALGORITHMS: Mapping[str, Algorithm] = {
    "lora": Algorithm(
        _sets(f"{DOWN} {UP}"), frozenset({MID, DORA}), lambda t: int(t[DOWN].shape[0]), _lora
    ),
    "loha": Algorithm(
        _sets("hada_w1_a hada_w1_b hada_w2_a hada_w2_b"),
        frozenset({"hada_t1", "hada_t2", DORA}),
        lambda t: int(t["hada_w1_b"].shape[0]),
        _loha,
    ),
    "lokr": Algorithm(
        _sets(
            "lokr_w1 lokr_w2", "lokr_w1 lokr_w2_a lokr_w2_b", "lokr_w1_a lokr_w1_b lokr_w2",
            "lokr_w1_a lokr_w1_b lokr_w2_a lokr_w2_b",
        ),
        frozenset({"lokr_t2", DORA}),
        _lokr_rank,
        _lokr,
    ),
    "oft": Algorithm(_sets("oft_blocks"), frozenset({"rescale"}), lambda t: None, _oft, True),
    "boft": Algorithm(_sets(), frozenset(), lambda t: None, _boft, True),
    "full": Algorithm(_sets("diff"), frozenset(), lambda t: None, _full),
}  # fmt: skip
