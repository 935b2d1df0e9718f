"""Checks before the first iteration: the network's cost, what NetAug widens and what it holds, and whether the
optimizer wrapper and the checkpoints fit the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmengine.config import Config
from mmengine.registry import OPTIM_WRAPPERS
from torch import Tensor, nn

from mmnetaug.analysis.cost import Cost, count_cost, count_params, find_input_shape
from mmnetaug.checkpoint import ReadOnce, pretrained
from mmnetaug.config import type_name
from mmnetaug.elastic import ChannelGroup, base_state_dict, find_spaces
from mmnetaug.engine import NetAugOptimWrapper
from mmnetaug.errors import UserError
from mmnetaug.files import is_local
from mmnetaug.models.distilled import DistillationMixin
from mmnetaug.terminal import abbreviate

# --- the network ------------------------------------------------------------------------------------------------------


@dataclass
class NetworkReport:
    """A description of a model and of its augmentation.

    Attributes:
        model: Class of the model.
        backbone: Class of its backbone, or None.
        params: Number of parameters of the tiny network.
        cost: Its cost at the config's input size; None if it cannot be counted.
        cost_problem: Why it cannot be counted.
        groups: The channel groups of an elastic model, including those held at base width; empty for a plain one.
    """

    model: str
    backbone: str | None
    params: int
    cost: Cost | None
    cost_problem: str | None
    groups: list[ChannelGroup]

    def figures(self) -> dict[str, Any]:
        """The report as plain values, for JSON."""
        return {
            "model": self.model,
            "backbone": self.backbone,
            "macs": self.cost and self.cost.macs,
            "params": self.params,
            "input_shape": self.cost and list(self.cost.input_shape),
            "not_counted": list(self.cost.not_counted) if self.cost else [],
            "cost_problem": self.cost_problem,
            "groups": [
                {name: getattr(group, name) for name in ("name", "role", "base_width", "widths", "held_reason")}
                for group in self.groups
            ],
        }

    def __str__(self) -> str:
        network = self.model + (f" with backbone {self.backbone}" if self.backbone else "")
        lines = [f"network: {network}, {self.params / 1e6:.3f} M parameters"]
        if self.cost:
            shape = "x".join(map(str, self.cost.input_shape[1:]))
            rest = f" (without {', '.join(self.cost.not_counted)})" if self.cost.not_counted else ""
            lines.append(f"  {self.cost.macs / 1e6:.2f} M MACs at {shape}{rest}")
        else:
            lines.append(f"  MACs unknown: {self.cost_problem}")
        return "\n".join(lines + self._augmentation())

    def _augmentation(self) -> list[str]:
        if not self.groups:
            return ["NetAug: off, a plain network"]
        widened = [group for group in self.groups if not group.held_reason]
        held = [group for group in self.groups if group.held_reason]
        lines = [f"NetAug: {len(widened)} of {len(self.groups)} channel groups augmented"]
        if widened:
            lines.append(f"  {'role':<8} {'groups':>6}  {'base widths':>12}  {'largest widths':>14}")
        for role in dict.fromkeys(group.role for group in widened):
            of_role = [group for group in widened if group.role == role]
            base = _range([group.base_width for group in of_role])
            largest = _range([group.widths[-1] for group in of_role])
            lines.append(f"  {role:<8} {len(of_role):>6}  {base:>12}  {largest:>14}")
        for reason in dict.fromkeys(group.held_reason for group in held):
            names = [group.name for group in held if group.held_reason == reason]
            lines.append(f"  at base  {len(names):>6}  {reason}: {abbreviate(names, 3)}")
        return lines


def inspect_network(cfg: Config, model: nn.Module, size: tuple[int, int] | None = None) -> NetworkReport:
    """Counts the cost of a model and lists its channel groups.

    Args:
        cfg: The model's config, whose test pipeline sets the input size.
        model: Plain or elastic, without a wrapper.
        size: ``(H, W)`` of the input, in place of the config's.
    """
    cost, problem = None, None
    try:
        cost = count_cost(model, find_input_shape(cfg, model, size))
    except ValueError as error:
        problem = str(error)
    backbone = getattr(model, "backbone", None)
    return NetworkReport(
        model=type(model).__name__,
        backbone=None if backbone is None else type(backbone).__name__,
        params=count_params(model),
        cost=cost,
        cost_problem=problem,
        groups=[group for space in find_spaces(model) for group in space.groups],
    )


# --- its weights ------------------------------------------------------------------------------------------------------


def check_weights(
    model: nn.Module,
    checkpoint: Mapping[str, Any],
    source: str,
    prefix: str = "",
    complete: bool = False,
    partial: bool = False,
) -> str:
    """Checks that a checkpoint holds the weights of this network.

    MMEngine loads the weights that fit and only logs the others, so with the checkpoint of another network it would
    continue with an untrained one. Weights fit an elastic model in the shapes of its tiny network or of its largest.

    Training may start from the checkpoint of another task. Missing layers then start anew: a neck or head that is
    absent as a whole, last layers with another number of classes, and modules that extend pre-trained networks
    (``starts_anew``). The backbone must be complete. The checkpoint may hold stages after those of the backbone, but
    no layers between them, which would be those of a deeper network.

    Args:
        model: Plain or elastic.
        checkpoint: State dict, or a dict that holds one under ``state_dict``.
        source: Path of the checkpoint, for messages.
        prefix: Prefix of this model's keys in the checkpoint; others are ignored.
        complete: Whether no layer may start anew, for testing and for resuming.
        partial: Whether any layer may start anew, as requested by the user.

    Returns:
        A line for the log: the checkpoint, and the layers that start anew.

    Raises:
        UserError: The checkpoint belongs to another network.
    """
    given = _weights(checkpoint, prefix)
    stored, tiny = model.state_dict(), base_state_dict(model)
    # Converted checkpoints may lack the step counters of norms, on which nothing depends.
    needed = [name for name in stored if not name.endswith("num_batches_tracked")]
    own = min((tiny, stored), key=lambda own: sum(_shape(given.get(name)) != _shape(own[name]) for name in needed))
    absent = [name for name in needed if name not in given]
    reshaped = [name for name in needed if name in given and given[name].shape != own[name].shape]
    between = _layers_between(model, given, stored)

    anew: dict[str, list[str]] = {}
    if not complete:
        added = tuple(f"{name}." for name, module in model.named_modules() if getattr(module, "starts_anew", False))
        telling = tuple(
            f"{name}." if name else ""
            for name, module in model.named_modules()
            if isinstance(classes := getattr(module, "num_classes", None), int) and classes > 0
        )
        held = {name.partition(".")[0] for name in given} | {"backbone"}
        anew["made to be added"] = [name for name in absent if name.startswith(added)]
        if _has_backbone(model):
            anew["absent from it"] = [name for name in absent if name.partition(".")[0] not in held]
        anew["another number of classes"] = [
            name for name in reshaped if name.startswith(telling) and given[name].shape[1:] == own[name].shape[1:]
        ]
    expected = {name for names in anew.values() for name in names}
    faults = {
        "are absent": [name for name in absent if name not in expected],
        "have another shape": [name for name in reshaped if name not in expected],
        "lie between its layers and have no place in it": between,
    }
    faults = {what: names for what, names in faults.items() if names}
    left_out = [name for name in given if name not in stored and not name.endswith("num_batches_tracked")]
    fitting = len(needed) - len(absent) - len(reshaped)
    if faults and not (partial and fitting):
        raise UserError(_misfit(model, given, own, prefix, source, faults, complete))
    anew["--allow-partial"] = [name for name in absent + reshaped if name not in expected]
    anew["absent from it"] = list(dict.fromkeys(name.partition(".")[0] for name in anew.get("absent from it", ())))
    notes = [f"{abbreviate(names, 3)} start anew ({why})" for why, names in anew.items() if names]
    notes += [f"{abbreviate(left_out, 3)} of it left out"] if left_out else []
    return "; ".join([f"weights: from {source}", *notes])


def check_classes(checkpoint: Mapping[str, Any], classes: Sequence[str], source: str) -> None:
    """Checks that a checkpoint was trained on these classes, if it lists any.

    Raises:
        UserError: It was trained on other classes, or on these in another order.
    """
    meta = checkpoint.get("meta") or {}
    trained = list((meta.get("dataset_meta") or {}).get("classes") or ())
    if trained and classes and trained != list(classes):
        raise UserError(
            f"{source} was trained on other classes, or in another order: {abbreviate(trained, 20)}; the data have "
            f"{abbreviate(classes, 20)}. Set metainfo=dict(classes=...) of the data set to the former."
        )


def check_resumable(checkpoint: Mapping[str, Any], source: str) -> None:
    """Checks that a checkpoint holds everything needed to resume, not only weights.

    Raises:
        UserError: It does not.
    """
    absent = [key for key in ("meta", "optimizer", "message_hub") if key not in checkpoint]
    if absent:
        raise UserError(
            f"cannot resume from {source}: it holds no {' and no '.join(absent)}, so it is no full checkpoint. "
            "To start from its weights, use --cfg-options load_from=..."
        )


def check_pretrained(
    model: nn.Module, checkpoints: ReadOnce, trusted: bool, partial: bool = False, classes: Sequence[str] = ()
) -> list[str]:
    """Checks the files that initialise parts of a model (``init_cfg`` of type ``Pretrained``).

    Downloaded files, too, may hold nothing but tensors. The teacher of a distilled network must fit completely,
    since it is not trained.

    Args:
        model: Plain or elastic, not yet initialised.
        checkpoints: Reads the files for MMEngine.
        trusted: Whether the files may hold any pickle.
        partial: Whether missing layers may start anew, except for a teacher's.
        classes: Those of the data, which a teacher must have been trained on.

    Returns:
        A line per file for the log.

    Raises:
        UserError: A file holds the weights of another network.
        CheckpointError: A file cannot be read.
    """
    lines = []
    teachers = [module.teacher for module in model.modules() if isinstance(module, DistillationMixin)]
    for module in [*model.modules(), *teachers]:
        is_teacher = module in teachers
        for init in pretrained(module):
            path, prefix = init["checkpoint"], init.get("prefix") or ""
            prefix = f"{prefix.rstrip('.')}." if prefix else ""
            weights = checkpoints.read(path, trusted)
            if not is_local(path) and not is_teacher:  # stock backbones convert what they download
                lines.append(f"weights: from {path}")
                continue
            line = check_weights(module, weights, path, prefix, complete=is_teacher, partial=partial)
            if is_teacher:
                check_classes(weights, classes, path)
            lines.append(f"teacher's {line}" if is_teacher else line)
    return lines


def _has_backbone(model: nn.Module) -> bool:
    return isinstance(getattr(model, "backbone", None), nn.Module)


def _layers_between(model: nn.Module, given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """Tensors of a checkpoint before the backbone's last layer that the backbone lacks."""
    part = "backbone." if _has_backbone(model) else ""
    names = [name for name in given if name.startswith(part) and not name.endswith("num_batches_tracked")]
    last = max((place for place, name in enumerate(names) if name in own), default=0)
    return [name for name in names[:last] if name not in own]


def _misfit(
    model: nn.Module,
    given: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    prefix: str,
    source: str,
    faults: Mapping[str, list[str]],
    complete: bool,
) -> str:
    """The message for a checkpoint that does not fit."""
    parts = []
    for what, names in faults.items():
        name = names[0]
        shapes = f"{name}: {_shape(given[name])} instead of {_shape(own[name])}" if what.endswith("shape") else ""
        parts.append(f"{len(names)} {what} ({shapes or abbreviate(names, 3)})")
    message = f"{source} is a checkpoint of another network: of the {len(own)} tensors of this one, {', '.join(parts)}."
    absent, reshaped = (faults.get(what, ()) for what in ("are absent", "have another shape"))
    if not prefix and any(f"backbone.{name}" in given for name in absent):
        return f"{message} Its keys start with 'backbone.': set prefix='backbone.' beside checkpoint= in init_cfg."
    larger = all(_at_least(given[name], own[name]) for name in reshaped)
    if reshaped and larger and not absent and not find_spaces(model):
        return f"{message} All of them are larger: if it was trained with NetAug, use the *_tiny.pth beside it."
    return message if complete else f"{message} To start these anew all the same: --allow-partial."


def _weights(checkpoint: Mapping[str, Any], prefix: str) -> dict[str, Tensor]:
    """Tensors of a checkpoint by the names under which MMEngine loads them."""
    state = checkpoint.get("state_dict", checkpoint)
    state = {name.removeprefix("module."): value for name, value in state.items() if isinstance(value, Tensor)}
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _shape(tensor: Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else tuple(tensor.shape)


def _at_least(given: Tensor, own: Tensor) -> bool:
    return given.dim() == own.dim() and all(a >= b for a, b in zip(given.shape, own.shape, strict=True))


# --- its training -----------------------------------------------------------------------------------------------------


def check_training(cfg: Config, model: nn.Module) -> None:
    """Checks that the optimizer wrapper adds an augmented pass if, and only if, the model is elastic.

    Raises:
        UserError: Only one of the two is set up for NetAug, the wrapper is unknown, or the model would be compiled.
    """
    if find_spaces(model) and cfg.get("compile"):
        raise UserError("an elastic model would be recompiled for every width: leave compile out of the config")
    name = type_name(cfg.optim_wrapper) or "OptimWrapper"
    kind = cfg.optim_wrapper.get("type", "OptimWrapper")
    kind = OPTIM_WRAPPERS.get(kind) if isinstance(kind, str) else kind
    if kind is None:
        raise UserError(f"optim_wrapper.type is {name}, which is not registered")
    adds_pass = issubclass(kind, NetAugOptimWrapper)
    if find_spaces(model) and not adds_pass:
        raise UserError(
            f"the model is elastic, but optim_wrapper.type is {name}, which adds no augmented pass: set it to "
            "mmnetaug.NetAugOptimWrapper or mmnetaug.NetAugAmpOptimWrapper, or train the plain model"
        )
    if adds_pass and not find_spaces(model):
        raise UserError(
            f"optim_wrapper.type is {name}, but nothing in the model is elastic: wrap the model's config in "
            "dict(type='mmnetaug.NetAug', model=...), or set optim_wrapper.type to OptimWrapper"
        )


def _range(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low}..{high}"
