"""PyTorch's PowerSGD hook under the same state as our methods: counted, audited, one bucket at a time."""

import time
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import GradBucket
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook

from compress.audit.step import AuditStep
from compress.compressors.base import AllReduceMean, Matrix
from compress.compressors.torch_powersgd import TorchPowerSGD
from compress.exchange import is_finite
from compress.layers import named_parameters
from compress.plan import Plan
from compress.state import CompressionState

_last_group: dist.ProcessGroup | None = None
"""The group of the newest state, which must outlive the hook's callbacks.

Gloo's threads let go of them, and so of the group, some time after the step. Were that the last reference, the
group would wait for its own thread to end, and abort the process.
"""


class PeerState(CompressionState):
    """Hands every bucket to PyTorch's hook, and waits for it before the next one.

    The hook issues collectives from callbacks: those of two buckets reach workers in different orders, and
    hang (on gloo). Waiting costs the overlap with the backward pass. `exchange.seconds` holds the hook's
    arithmetic too.

    A saved state holds residuals by parameter, as those of other methods do. Loaded, they are sent dense with
    the next step, from which on the hook begins anew with its dense steps.
    """

    def _carry_out(self, plan: Plan) -> None:
        """Take up a plan.

        Raises:
            ValueError: a GradScaler, or a parameter that PyTorch's hook cannot take.
        """
        if self._scaler is not None:
            raise ValueError(
                "PyTorch's hook keeps residuals scaled by what a GradScaler may change; leave out grad_scaler, or "
                "take compressor 'powersgd'"
            )
        for name, parameter in named_parameters(self._model).items():
            if not parameter.dim() or not parameter.is_contiguous():
                raise ValueError(
                    f"{name} has shape {tuple(parameter.shape)} and strides {parameter.stride()}; PyTorch's hook takes "
                    "contiguous parameters of one axis or more. Make it so, or take compressor 'powersgd'"
                )
        global _last_group
        _last_group = self.exchange.group or dist.group.WORLD
        super()._carry_out(plan)
        self._hook_state = self._fresh_hook_state()
        self._owes = False  # whether residuals were loaded that are yet to be sent
        self._under_way: AuditStep | None = None
        self._delivered: dict[str, Tensor] = {}

    def _fresh_hook_state(self) -> PowerSGDState:
        """PyTorch's state as it is before the first step."""
        fit, method = next(
            (assignment.fit, assignment.compressor)
            for assignment in self._plan.values()
            if isinstance(assignment.compressor, TorchPowerSGD)
        )
        return PowerSGDState(
            self.exchange.group,
            matrix_approximation_rank=fit.columns,  # alike in all that it compresses, by policy 'fixed'
            start_powerSGD_iter=method.start_step,
            min_compression_rate=method.min_compression_rate,
            use_error_feedback=method.use_error_feedback,
            warm_start=method.warm_start,
            orthogonalization_epsilon=method.epsilon,
            random_seed=self._seed,
        )

    def on_bucket(self, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        """Average one bucket of gradients; its future is complete."""
        gradients = {
            self._names[id(parameter)]: gradient
            for parameter, gradient in zip(bucket.parameters(), bucket.gradients(), strict=True)
        }
        if not self._delivered:
            self._finite = torch.tensor(True, device=bucket.buffer().device)
            self._under_way = self.auditor.begin(self._plan, self.step)
        if self._under_way is not None:
            self._note(self._under_way, gradients)
        if self._owes:
            for name, gradient in gradients.items():
                if "residual" in self._memories.get(name, {}):
                    gradient.add_(self._memories[name]["residual"].view_as(gradient))
        future = self._average(bucket)
        self._finite &= is_finite(bucket.buffer())
        self._delivered |= gradients
        if not self._owes:
            self._find_residuals(bucket, gradients)
        if bucket.is_last():
            self._end_step()
        return future

    def _note(self, audit: AuditStep, gradients: Mapping[str, Tensor]) -> None:
        for name, gradient in gradients.items():
            assignment, memory = self._plan[name], self._memories.get(name, {})
            if assignment.info.is_matrix:
                audit.note(Matrix(assignment.info, {name: gradient}, assignment.fit, self.step, self._seed, memory))

    def _average(self, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        """Let PyTorch's hook write over the bucket, and count what it hands to collectives, by its own account."""
        hook, buffer = self._hook_state, bucket.buffer()
        dense, before = hook.iter < hook.start_powerSGD_iter, hook.total_numel_after_compression
        started = time.perf_counter()
        future: torch.futures.Future[Tensor] = powerSGD_hook(hook, bucket)
        future.wait()
        self.exchange.seconds += time.perf_counter() - started
        numbers = buffer.numel() if dense else hook.total_numel_after_compression - before
        self.exchange.count(AllReduceMean, numbers * buffer.element_size())
        return future

    def _find_residuals(self, bucket: GradBucket, gradients: Mapping[str, Tensor]) -> None:
        """See what the hook keeps of a bucket as the residuals of its compressed matrices."""
        kept = self._hook_state.error_dict.get(bucket.index())
        if kept is None:
            return
        for name, gradient in gradients.items():
            if self._plan[name].compressor.whole_buckets:
                start = gradient.storage_offset() - bucket.buffer().storage_offset()
                residual = kept[start : start + gradient.numel()]
                self._memories[name] = {"residual": residual.view(self._plan[name].info.matrix)}

    def _end_step(self) -> None:
        self._nonfinite_steps = self._nonfinite_steps.to(self._finite.device) + ~self._finite
        if self._owes and self.finite:
            self._owes, self._memories = False, {}
        if self._under_way is not None:
            self.auditor.exchange_noted(self._under_way)
        delivered, self._delivered = self._delivered, {}
        self.step += 1
        self.auditor.end(self._under_way, delivered, self.step)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a state that this worker saved, under this method or another.

        Raises:
            ValueError: it was saved with another network.
        """
        super().load_state_dict(state)
        self._hook_state = self._fresh_hook_state()
        self._owes = True
