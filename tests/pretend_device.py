"""A pretended accelerator: what would break or stall on a GPU shows on a machine without one.

Tensors on device "pretend" lie in the CPU's memory, but refuse to meet the CPU's tensors as CUDA's do; collectives
refuse tensors of the CPU as NCCL's do. A report says where the host waited for the device within a training step
(`.item()`, `.cpu()`, boolean indexing, ...), and which matrix products ran where before, during and after `fit`.
Numbers are the CPU's. It knows nothing of kernels, memory, streams, or of what a real NCCL does besides.

`install()` is for a process of its own (`tests/commands.py` does it in a fork); it cannot be undone.
"""

import collections
import json
import traceback
from pathlib import Path

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.accelerators import Accelerator, AcceleratorRegistry
from pytorch_lightning.loops.training_epoch_loop import _TrainingEpochLoop
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy
from pytorch_lightning.trainer.connectors.accelerator_connector import _AcceleratorConnector
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten

import coop

aten = torch.ops.aten
NAME = "pretend"
DEVICE = "pretend:0"
SYNCS = {
    aten._local_scalar_dense.default, aten.nonzero.default, aten.is_nonzero.default, aten.masked_select.default,
    aten.equal.default, aten._unique2.default, aten.unique_dim.default,
}  # fmt: skip
# Their arguments may lie on the CPU, on CUDA too; a boolean one makes the host wait.
INDEXING = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}
PRODUCTS = {
    aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default, aten.convolution.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default, aten._scaled_dot_product_attention_math.default,
}  # fmt: skip


class Report:
    """What was seen in this process.

    Attributes:
        phase: "before", "fit" or "after".
        in_step: within a training step but the first, which may prepare what all others use.
        syncs: places within steps where the host waited for the device, and how often.
        products: numbers of matrix products, by "phase device".
        cpu: places of those on the CPU, with their phase.
    """

    def __init__(self):
        self.phase, self.in_step, self.steps = "before", False, 0
        self.syncs, self.products, self.cpu = (collections.Counter() for _ in range(3))

    def sync(self, func) -> None:
        # With several processes Lightning itself asks in every step whether one of them has been told to stop.
        if self.in_step and not any(frame.name == "_broadcast_sigterm_tensor" for frame in traceback.extract_stack()):
            self.syncs[f"{place()} {func}"] += 1

    def product(self, func, device: str) -> None:
        self.products[f"{self.phase} {device}"] += 1
        if device == "cpu":
            self.cpu[f"{self.phase} {place()} {func}"] += 1

    def write(self, path: Path) -> None:
        settings = {"tf32": torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.allow_tf32}
        path.write_text(json.dumps({"syncs": self.syncs, "products": self.products, "cpu": self.cpu} | settings))


report = Report()


def place() -> str:
    """The innermost line of the project that is being run."""
    root = str(Path(coop.__file__).parent)
    frames = [frame for frame in traceback.extract_stack() if frame.filename.startswith(root)]
    return f"{Path(frames[-1].filename).relative_to(root)}:{frames[-1].lineno}" if frames else "?"


class PretendTensor(torch.Tensor):
    """A tensor on the pretended device; `raw` is its content on the CPU."""

    @staticmethod
    def __new__(cls, raw):
        self = torch.Tensor._make_wrapper_subclass(
            cls, raw.shape, strides=raw.stride(), storage_offset=raw.storage_offset(), dtype=raw.dtype,
            layout=raw.layout, device=torch.device(DEVICE), requires_grad=False,
        )  # fmt: skip
        self.raw = raw
        return self

    def __repr__(self, **_):
        return f"pretend({self.raw!r})"

    def __reduce_ex__(self, protocol):
        return self.raw.detach().__reduce_ex__(protocol)  # comes back on the CPU

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


def is_pretend(device) -> bool:
    return device is not None and torch.device(device).type == NAME


def unwrap(x):
    return x.raw if isinstance(x, PretendTensor) else x


def wrap(x):
    return PretendTensor(x) if isinstance(x, torch.Tensor) and not isinstance(x, PretendTensor) else x


def each(function, values):
    """A function of a value, or of each of a list: operations take and give no deeper structures."""
    return type(values)(map(function, values)) if type(values) in (list, tuple) else function(values)


def flat(values) -> list:
    return [x for value in values for x in (value if type(value) in (list, tuple) else (value,))]


def run(func, args, kwargs):
    """One operation: on the device if its tensors are there, on the CPU if they are there, never on both."""
    if func is aten._to_copy.default:
        return _copy_to(func, args[0], kwargs)
    if func is aten.copy_.default:
        func(unwrap(args[0]), unwrap(args[1]), *args[2:])
        if isinstance(args[1], PretendTensor) and not isinstance(args[0], PretendTensor):
            report.sync(func)
        return args[0]
    device = kwargs.get("device")
    given = flat((*args, *kwargs.values()))
    ours = [x for x in given if isinstance(x, PretendTensor)]
    if func in PRODUCTS:
        report.product(func, NAME if ours else "cpu")
    if not ours and not is_pretend(device):
        return func(*args, **kwargs)
    raw = [each(unwrap, x) for x in args]
    named = {key: each(unwrap, x) for key, x in kwargs.items()}
    if is_pretend(device):
        return each(wrap, func(*raw, **{**named, "device": torch.device("cpu")}))
    _refuse_the_cpu(func, given, ours)
    indices = args[1] if func in INDEXING else []
    if func in SYNCS or any(isinstance(x, torch.Tensor) and x.dtype == torch.bool for x in indices):
        report.sync(func)
    out = func(*raw, **named)
    if device is not None or (func in SYNCS and not isinstance(out, torch.Tensor)):
        return out
    back = {id(x.raw): x for x in ours}  # an operation in place returns its argument
    return each(lambda x: back.get(id(x)) if id(x) in back else wrap(x), out)


def _copy_to(func, x, kwargs):
    target = kwargs.get("device")
    to_pretend = is_pretend(target) if target is not None else isinstance(x, PretendTensor)
    if isinstance(x, PretendTensor) and not to_pretend:
        report.sync(func)
    out = func(unwrap(x), **{**kwargs, **({"device": torch.device("cpu")} if target is not None else {})})
    return wrap(out) if to_pretend else out


def _refuse_the_cpu(func, given, ours) -> None:
    strange = [x for x in given if isinstance(x, torch.Tensor) and not isinstance(x, PretendTensor) and x.dim() > 0]
    if strange and func not in INDEXING:
        shapes = [tuple(x.shape) for x in ours + strange]
        raise RuntimeError(f"{func}: expected all tensors on one device, found {NAME} and cpu (shapes {shapes})")


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


class _BelowDispatch(TorchFunctionMode):
    """What torch does without dispatching an operation: constructors, `.tolist()`, and setting `.data`."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.Tensor.tolist and isinstance(args[0], PretendTensor):
            report.sync(func)
            return args[0].raw.tolist()
        if func == torch.Tensor.data.__set__ and isinstance(args[0], PretendTensor):
            args[0].raw = unwrap(args[1]).detach()
        if func in (torch.tensor, torch.as_tensor) and is_pretend(kwargs.get("device")):
            device = kwargs["device"]
            return func(*args, **{**kwargs, "device": "cpu"}).to(device)
        return func(*args, **kwargs)


class _Module(backend_registration._DummyBackendModule):
    def get_amp_supported_dtype(self):
        return [torch.bfloat16, torch.float16]

    def is_available(self):
        return True

    def device_count(self):
        return 1

    def current_device(self):
        return 0

    def manual_seed_all(self, seed):
        pass

    def manual_seed(self, seed):
        pass

    def _is_in_bad_fork(self):
        return False

    def synchronize(self, device=None):
        pass

    def empty_cache(self):
        pass


class PretendAccelerator(Accelerator):
    """For Lightning: `Trainer(accelerator="pretend", devices=N)`."""

    def setup_device(self, device):
        pass

    def teardown(self):
        pass

    def get_device_stats(self, device):
        return {}

    @staticmethod
    def parse_devices(devices):
        return list(range(int(devices)))

    @staticmethod
    def get_parallel_devices(devices):
        return [torch.device(DEVICE)] * len(devices)

    @staticmethod
    def auto_device_count():
        return 1

    @staticmethod
    def is_available():
        return True

    @staticmethod
    def name():
        return NAME


def collective(function):
    """A function of torch.distributed on the raw tensors; NCCL has no way to take the CPU's."""

    def call(*args, **kwargs):
        flat, spec = tree_flatten((args, kwargs))
        if wrong := [tuple(x.shape) for x in flat if isinstance(x, torch.Tensor) and not isinstance(x, PretendTensor)]:
            raise RuntimeError(f"{function.__name__}: No backend type associated with device type cpu (shapes {wrong})")
        args, kwargs = tree_unflatten([unwrap(x) for x in flat], spec)
        return function(*args, **kwargs)

    return call


def share_gradients(strategy: DDPStrategy) -> None:
    """What DistributedDataParallel does, whose reducer needs real memory: equal starts, the mean of all gradients."""
    for tensor in (*strategy.model.parameters(), *strategy.model.buffers()):
        dist.broadcast(tensor.detach(), 0)
    for parameter in strategy.model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(_mean_of_all)


def _mean_of_all(parameter) -> None:
    dist.all_reduce(parameter.grad)
    parameter.grad /= dist.get_world_size()


def install() -> Report:
    """Make the device, and watch Lightning's training from now on."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
    _BelowDispatch().__enter__()
    _Mode().__enter__()
    AcceleratorRegistry.register(NAME, PretendAccelerator, description=NAME)
    _give_lightning_the_device()
    DDPStrategy.configure_ddp = share_gradients
    for name in ("all_reduce", "all_gather", "broadcast", "reduce", "gather", "scatter", "all_gather_into_tensor"):
        setattr(dist, name, collective(getattr(dist, name)))
    _watch()
    return report


def _give_lightning_the_device() -> None:
    """Lightning gives one device of an accelerator that it does not know the CPU as root device."""
    choose = _AcceleratorConnector._choose_strategy

    def chosen(connector):
        strategy = choose(connector)
        one = connector._accelerator_flag == NAME and isinstance(strategy, SingleDeviceStrategy)
        return SingleDeviceStrategy(device=torch.device(DEVICE)) if one else strategy

    _AcceleratorConnector._choose_strategy = chosen
    init = dist.init_process_group  # gloo carries the raw tensors, and knows no such device
    dist.init_process_group = lambda *args, device_id=None, **kwargs: init(*args, **kwargs)


def _watch() -> None:
    fit, advance = pl.Trainer.fit, _TrainingEpochLoop.advance

    def watched_fit(*args, **kwargs):
        report.phase = "fit"
        fit(*args, **kwargs)
        report.phase = "after"

    def watched_advance(*args, **kwargs):
        report.in_step, report.steps = report.steps > 0, report.steps + 1
        try:
            advance(*args, **kwargs)
        finally:
            report.in_step = False

    pl.Trainer.fit, _TrainingEpochLoop.advance = watched_fit, watched_advance
