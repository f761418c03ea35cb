"""Linear, LayerNormLinear and GroupedLinear with their tensor and sequence parallelism."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import Parameter
from torch.nn import functional as F

from .base import TransformerEngineBaseModule, fork_rng
from .norm import normalize

_PARALLEL_MODES = ("row", "column", None)


class _Parallel(TransformerEngineBaseModule):
    """A product that is split over a tensor-parallel group by columns (its outputs), by rows (its inputs) or not."""

    in_features: int
    out_features: int

    def _place(self, tp_group: Any, tp_size: int, parallel_mode: str | None, sequence_parallel: bool) -> None:
        self.tp_size = tp_size if tp_group is None else tp_group.size()
        self.set_tensor_parallel_group(tp_group)
        self.parallel_mode = parallel_mode
        assert parallel_mode in _PARALLEL_MODES, f"parallel_mode {parallel_mode} not supported"
        if parallel_mode == "column":
            self.out_features = self._share(self.out_features)
        elif parallel_mode == "row":
            self.in_features = self._share(self.in_features)
        self.sequence_parallel = self.tp_size > 1 and sequence_parallel

    def _share(self, features: int) -> int:
        assert features % self.tp_size == 0, f"{features} is not divisible by {self.tp_size}"
        return features // self.tp_size

    def _allocate(self, name: str, shape: tuple[int, ...], dtype: torch.dtype | None, device: Any) -> Parameter:
        """Register an empty parameter; ``device`` is the caller's, except that CUDA is this CPU."""
        parameter = Parameter(
            torch.empty(shape, dtype=dtype, device="cpu" if str(device).startswith("cuda") else device)
        )
        self.register_parameter(name, parameter)
        return parameter

    def _make_weight(self, name: str, dtype: Any, device: Any, init: Callable[..., Any] | None, rng: Any) -> None:
        weight = self._allocate(name, (self.out_features, self.in_features), dtype, device)
        # Transformer Engine marks replicated weights too, so that Megatron-Core's gradient norm counts every rank's.
        _split_over_ranks(weight, 1 if self.parallel_mode == "row" else 0)
        with fork_rng(*rng):
            if init is not None and not weight.is_meta:
                init(weight)

    def _make_bias(self, name: str, dtype: Any, device: Any) -> None:
        bias = self._allocate(name, (self.out_features,), dtype, device)
        with torch.no_grad():
            bias.zero_()
        if self.parallel_mode == "column":
            _split_over_ranks(bias, 0)
        elif self.parallel_mode == "row":
            bias.sequence_parallel = self.sequence_parallel  # type: ignore[attr-defined]

    def _gathered(self, x: torch.Tensor) -> torch.Tensor:
        """The input that all ranks share; the backward pass adds up their gradients."""
        if self.parallel_mode != "column" or self.tp_size == 1:
            return x
        mappings = _mappings()
        if self.sequence_parallel:
            return mappings.gather_from_sequence_parallel_region(
                x, tensor_parallel_output_grad=True, group=self.tp_group
            )
        return mappings.copy_to_tensor_model_parallel_region(x, group=self.tp_group)

    def _reduced(self, y: torch.Tensor) -> torch.Tensor:
        """The sum of the ranks' products, whole or each rank's share of the sequence."""
        mappings = _mappings()
        if self.sequence_parallel:
            return mappings.reduce_scatter_to_sequence_parallel_region(y, group=self.tp_group)
        return mappings.reduce_from_tensor_model_parallel_region(y, group=self.tp_group)


def _mappings() -> Any:
    """Megatron-Core's collectives with a backward pass; imported late, since Megatron-Core imports this package."""
    from megatron.core.tensor_parallel import mappings

    return mappings


def _split_over_ranks(parameter: Parameter, dimension: int) -> None:
    """Mark a parameter of which each rank has a slice along ``dimension``."""
    parameter.tensor_model_parallel = True  # type: ignore[attr-defined]
    parameter.partition_dim = dimension  # type: ignore[attr-defined]
    parameter.partition_stride = 1  # type: ignore[attr-defined]


def _require_computable(fuse_wgrad_accumulation: bool, delay_wgrad_compute: bool) -> None:
    if fuse_wgrad_accumulation or delay_wgrad_compute:
        raise NotImplementedError("a CPU rank neither fuses nor delays the accumulation of weight gradients")


class Linear(_Parallel):
    """``y = x W^T + b``. Shapes: x [..., in_features], W [out_features, in_features], before the split over ranks."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        sequence_parallel: bool = False,
        fuse_wgrad_accumulation: bool = False,
        tp_group: Any = None,
        tp_size: int = 1,
        get_rng_state_tracker: Callable[..., Any] | None = None,
        rng_tracker_name: str | None = None,
        init_method: Callable[..., Any] | None = None,
        bias: bool = True,
        return_bias: bool = False,
        params_dtype: torch.dtype | None = None,
        parallel_mode: str | None = None,
        parameters_split: Any = None,
        device: torch.device | str = "cuda",
        ub_overlap_ag: bool = False,
        ub_overlap_rs: bool = False,
        ub_overlap_rs_dgrad: bool = False,
        ub_bulk_dgrad: bool = False,
        ub_bulk_wgrad: bool = False,
        ub_name: str | None = None,
        delay_wgrad_compute: bool = False,
        symmetric_ar_type: str | None = None,
        save_original_input: bool = False,
        name: str | None = None,
    ) -> None:
        """Long because it has the arguments of Transformer Engine's."""
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self._place(tp_group, tp_size, parallel_mode, sequence_parallel)
        overlaps = (ub_overlap_ag, ub_overlap_rs, ub_overlap_rs_dgrad, ub_bulk_dgrad, ub_bulk_wgrad)
        if self.sequence_parallel and any(overlaps):
            assert ub_name is not None, "a layer whose communication overlaps has the name of a user buffer"
        self.ub_name, self.name, self.save_original_input = ub_name, name, save_original_input
        self.use_bias, self.return_bias = bias, return_bias
        self.fuse_wgrad_accumulation, self.delays_wgrad = fuse_wgrad_accumulation, delay_wgrad_compute
        self._make_weight("weight", params_dtype, device, init_method, (get_rng_state_tracker, rng_tracker_name))
        if bias:
            self._make_bias("bias", params_dtype, device)
        else:
            self.bias = torch.Tensor()

    def _product(self, x: torch.Tensor) -> torch.Tensor:
        """The product over all ranks; ``x`` is gathered already."""
        _require_computable(self.fuse_wgrad_accumulation, self.delays_wgrad)
        bias = self.bias if self.use_bias and not self.return_bias else None
        if self.parallel_mode != "row" or self.tp_size == 1:
            return F.linear(x, self.weight, bias)
        y = self._reduced(F.linear(x, self.weight))
        return y if bias is None else y + bias

    def forward(
        self,
        inp: torch.Tensor,
        is_first_microbatch: bool | None = None,
        fp8_output: bool | None = False,
        fp8_grad: bool | None = False,
    ) -> Any:
        y = self._product(self._gathered(inp))
        return (y, self.bias) if self.return_bias else y

    def backward_dw(self) -> None:
        """The delayed weight gradients."""
        raise NotImplementedError("a CPU rank does not delay weight gradients")


class LayerNormLinear(Linear):
    """A norm of the input, then :class:`Linear`."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        eps: float = 1e-5,
        sequence_parallel: bool = False,
        fuse_wgrad_accumulation: bool = False,
        tp_group: Any = None,
        tp_size: int = 1,
        get_rng_state_tracker: Callable[..., Any] | None = None,
        init_method: Callable[..., Any] | None = None,
        bias: bool = True,
        normalization: str = "LayerNorm",
        return_bias: bool = False,
        params_dtype: torch.dtype | None = None,
        parallel_mode: str | None = None,
        return_layernorm_output: bool = False,
        return_layernorm_output_gathered: bool = False,
        parameters_split: Any = None,
        zero_centered_gamma: bool = False,
        device: torch.device | str = "cuda",
        ub_overlap_ag: bool = False,
        ub_overlap_rs: bool = False,
        ub_overlap_rs_dgrad: bool = False,
        ub_bulk_wgrad: bool = False,
        ub_bulk_dgrad: bool = False,
        ub_name: str | None = None,
        delay_wgrad_compute: bool = False,
        symmetric_ar_type: str | None = None,
        name: str | None = None,
    ) -> None:
        """Long because it has the arguments of Transformer Engine's."""
        super().__init__(
            in_features,
            out_features,
            sequence_parallel,
            fuse_wgrad_accumulation,
            tp_group,
            tp_size,
            get_rng_state_tracker,
            init_method=init_method,
            bias=bias,
            return_bias=return_bias,
            params_dtype=params_dtype,
            parallel_mode=parallel_mode,
            parameters_split=parameters_split,
            device=device,
            ub_overlap_ag=ub_overlap_ag,
            ub_overlap_rs=ub_overlap_rs,
            ub_overlap_rs_dgrad=ub_overlap_rs_dgrad,
            ub_bulk_dgrad=ub_bulk_dgrad,
            ub_bulk_wgrad=ub_bulk_wgrad,
            ub_name=ub_name,
            delay_wgrad_compute=delay_wgrad_compute,
            symmetric_ar_type=symmetric_ar_type,
            name=name,
        )
        assert normalization in ("LayerNorm", "RMSNorm"), "Unsupported normalization type!"
        self.eps, self.normalization, self.zero_centered_gamma = eps, normalization, zero_centered_gamma
        self.return_layernorm_output = return_layernorm_output
        self.return_layernorm_output_gathered = return_layernorm_output_gathered
        weight = self._allocate("layer_norm_weight", (in_features,), params_dtype, device)
        norms = [weight]
        if normalization == "LayerNorm":
            norms.append(self._allocate("layer_norm_bias", (in_features,), params_dtype, device))
        else:
            self.layer_norm_bias = None
        with torch.no_grad():
            weight.fill_(0.0 if zero_centered_gamma else 1.0)
            for other in norms[1:]:
                other.zero_()
        for parameter in norms:
            parameter.sequence_parallel = self.sequence_parallel  # type: ignore[attr-defined]

    def forward(
        self,
        inp: torch.Tensor,
        is_first_microbatch: bool | None = None,
        fp8_output: bool | None = False,
        fp8_grad: bool | None = False,
    ) -> Any:
        normed = normalize(
            inp,
            self.layer_norm_weight,
            self.layer_norm_bias,
            self.eps,
            layer_norm=self.normalization == "LayerNorm",
            zero_centered=self.zero_centered_gamma,
        )
        gathered = self._gathered(normed)
        out = [self._product(gathered)]
        if self.return_bias:
            out.append(self.bias)
        if self.return_layernorm_output:
            out.append(gathered if self.return_layernorm_output_gathered else normed)
        return tuple(out) if len(out) > 1 else out[0]


class GroupedLinear(_Parallel):
    """``num_gemms`` products, each of its own rows: the experts of a rank. Shape of the input: [rows, in_features]."""

    def __init__(
        self,
        num_gemms: int,
        in_features: int,
        out_features: int,
        sequence_parallel: bool = False,
        fuse_wgrad_accumulation: bool = False,
        tp_group: Any = None,
        tp_size: int = 1,
        get_rng_state_tracker: Callable[..., Any] | None = None,
        rng_tracker_name: str | None = None,
        init_method: Callable[..., Any] | None = None,
        bias: bool = True,
        return_bias: bool = False,
        params_dtype: torch.dtype | None = None,
        parallel_mode: str | None = None,
        device: torch.device | str = "cuda",
        ub_overlap_rs: bool = False,
        ub_overlap_ag: bool = False,
        ub_name: str | None = None,
        delay_wgrad_compute: bool = False,
        save_original_input: bool = False,
    ) -> None:
        super().__init__()
        assert not (ub_overlap_rs or ub_overlap_ag), "GroupedLinear doesn't support Userbuffer overlap."
        self.num_gemms, self.in_features, self.out_features = num_gemms, in_features, out_features
        self._place(tp_group, tp_size, parallel_mode, sequence_parallel)
        self.use_bias, self.return_bias, self.save_original_input = bias, return_bias, save_original_input
        self.ub_name = ub_name
        self.fuse_wgrad_accumulation, self.delays_wgrad = fuse_wgrad_accumulation, delay_wgrad_compute
        rng = (get_rng_state_tracker, rng_tracker_name)
        for i in range(num_gemms):
            self._make_weight(f"weight{i}", params_dtype, device, init_method, rng)
        for i in range(num_gemms if bias else 0):
            self._make_bias(f"bias{i}", params_dtype, device)

    def forward(self, inp: torch.Tensor, m_splits: list[int], is_first_microbatch: bool | None = None) -> Any:
        _require_computable(self.fuse_wgrad_accumulation, self.delays_wgrad)
        adds_bias = self.use_bias and not self.return_bias
        parts = [
            F.linear(part, getattr(self, f"weight{i}"), getattr(self, f"bias{i}") if adds_bias else None)
            for i, part in enumerate(inp.split([int(rows) for rows in m_splits]))
        ]
        y = torch.cat(parts)
        return (y, [getattr(self, f"bias{i}") for i in range(self.num_gemms)]) if self.return_bias else y

    def backward_dw(self) -> None:
        """The delayed weight gradients."""
        raise NotImplementedError("a CPU rank does not delay weight gradients")
