"""Networks for tables: a plain one, and the preset "strong", with the ingredients of RealMLP."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bpnet.backends.base import Array
from bpnet.callbacks.monitors import EarlyStopping
from bpnet.errors import OptionError, kind_of
from bpnet.initializers import Normal
from bpnet.layer import Layer, Rng, Run
from bpnet.layers.activation import Activation
from bpnet.layers.clamp import Clamp
from bpnet.layers.composition import Residual, Sequential, named_layer
from bpnet.layers.dense import Dense
from bpnet.layers.dropout import Dropout
from bpnet.layers.members import BatchEnsemble, MemberDense, MemberScale
from bpnet.layers.numeric_embedding import NumericEmbedding
from bpnet.layers.scale import Scale
from bpnet.layers.standardize import Standardize
from bpnet.layers.tabular import TabularInput
from bpnet.losses.base import Loss
from bpnet.losses.classes import CrossEntropy
from bpnet.losses.members import Members
from bpnet.losses.regression import MeanSquaredError
from bpnet.optimizers.adam import AdamW
from bpnet.optimizers.base import Optimizer
from bpnet.optimizers.groups import Grouped
from bpnet.options import choice, whole
from bpnet.registry import parts_of
from bpnet.schedules import CosLog, Epochs, FlatCosine, Schedule
from bpnet.trainer import Trainer
from bpnet.typing import ActivationName
from bpnet.unit_variance import start_from_data

Task = Literal["classification", "regression"]


def table_network(
    inputs: Layer | None,
    outputs: int,
    *,
    hidden: Sequence[int] = (256,),
    activation: ActivationName | Activation = "relu",
    dropout: float | Schedule = 0.0,
    norm: Layer | str | None = None,
    residual: bool = False,
    members: int | None = None,
    out_scale: Standardize | None = None,
) -> Sequential:
    """inputs -> [Dense -> norm -> activation -> dropout] for each of `hidden` -> Dense(outputs) -> out_scale.

    inputs : what makes features of rows, such as `TabularInput`; None where rows are features
    norm : a layer between product and activation, as "LayerNorm"; None for none
    residual : y = x + block(x) for every block that keeps the width of the one before
    members : so many networks side by side, the output being (rows, members, outputs), as in TabM (Gorishniy,
        Kotelnikov and Babenko 2025): `BatchEnsemble` layers, and a last layer each.  Its loss is bp.Members(loss)
    out_scale : an inverted `Standardize`, which gives the output in the unit of the target
    """
    layers: list[Layer] = [] if inputs is None else [inputs]
    embedded = inputs is not None and any(True for _ in parts_of(inputs, NumericEmbedding))
    before = None
    for i, units in enumerate(hidden):
        own: ActivationName | Activation = activation if norm is None else "identity"
        block: list[Layer | str]
        if members is None:
            block = [Dense(units, own)]
        else:
            start = "ones" if i else "normal" if embedded else "random_signs"
            block = [BatchEnsemble(members, units, own, start, kernel_init="torch", bias_init="torch")]  # type: ignore[arg-type]
        if norm is not None:
            block += [norm, activation]
        if isinstance(dropout, Schedule) or dropout > 0.0:
            block.append(Dropout(dropout))
        made = [named_layer("norm", layer) for layer in block]
        if residual and units == before:
            made = [Residual(Sequential(*made))]
        layers += made
        before = units
    last = Dense(outputs) if members is None else MemberDense(members, outputs, kernel_init="torch", bias_init="torch")
    return Sequential(*layers, last, *([] if out_scale is None else [out_scale]))


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: what `Trainer` and `fit` are to be given, and how it starts.

    With rows x, y to train on, and others held out:

        trainer = recipe.start(recipe.trainer(seed=0), x)
        options = {"epochs": recipe.epochs, "batch_size": recipe.batch_size, "callbacks": [recipe.best_epoch()]}
        trainer.fit(x, y, validation=(xv, yv), **options)
    """

    network: Sequential
    loss: Loss
    optimizer: Optimizer
    epochs: int
    batch_size: int
    monitor: str
    """The quantity of whose best epoch the parameters are kept."""
    from_data: bool
    """Whether dense layers start by what the data are."""

    def trainer(self, **options: Any) -> Trainer:
        """A trainer of it; the options are those of `bp.Trainer`."""
        return Trainer(self.network, self.loss, self.optimizer, **options)

    def best_epoch(self) -> EarlyStopping:
        """The callback that restores the parameters of the best epoch on held-out rows, of equal ones the latest."""
        return EarlyStopping(self.monitor, patience=self.epochs, latest=True)

    def start(self, trainer: Trainer, x: Any) -> Trainer:
        """Give dense layers the start values that depend on the rows `x`; call it once, before `fit`.

        Each unit's weights are divided by the deviation of what they make of the rows, so that it is 1, and its bias is
        minus what they make of a random point within the data, a mean of 5 rows by weights that are drawn evenly among
        those that add up to 1: so that every unit's kink or bend is where there are rows ("he+5", Holzmueller et al.
        2024, after Steinwart 2019).  At most some `STARTING` rows are looked at.
        """
        if not self.from_data:
            return trainer
        rng = Rng(trainer.seed + 1)

        def tune(run: Run, name: str, x: Array, weight: Array, bias: Array | None) -> tuple[Array, Array | None]:
            backend, xp = run.backend, run.xp
            z = run.matmul(x, weight)
            rows, units = z.shape
            centred = z - run.sum_rows(z) * (1.0 / rows)
            deviation = xp.sqrt(run.sum_rows(centred * centred) * (1.0 / rows))
            inverse = xp.where(deviation > 0.0, 1.0 / xp.where(deviation > 0.0, deviation, 1.0), 1.0)
            if bias is None:
                return weight * inverse, None
            device = backend.device(weight)
            even = [(rng.uniform((CORNERS, units), 0.5) + 0.5).clip(2.0**-53) for _ in range(2)]  # within 0 ... 1
            place = backend.from_host((even[0] * rows).astype("int64"), xp.int64, device)
            share = -xp.log(backend.from_host(even[1], weight.dtype, device))
            columns = xp.arange(units, dtype=xp.int64, device=device)
            corners = xp.reshape(xp.take(xp.reshape(z, (-1,)), xp.reshape(place * units + columns, (-1,))), share.shape)
            point = xp.sum(share * corners, axis=0) / xp.sum(share, axis=0)
            return weight * inverse, -point * inverse

        return start_from_data(trainer, _some(x), tune)


CORNERS = 5
"""How many rows a bias is a mean of."""
STARTING = 8192
"""Rows that start values are made of, at most."""


def strong(
    numbers: Layer | None,
    categories: Layer | None,
    outputs: int,
    *,
    task: Task,
    loss: Loss | None = None,
    out_scale: Standardize | None = None,
    out_range: tuple[Any, Any] | None = None,
    members: int | None = None,
    simple: bool = False,
    rows: int | None = None,
    epochs: int = 256,
    batch_size: int = 256,
) -> Recipe:
    """The network and the training of RealMLP-TD, or with `simple` of RealMLP-TD-S (Holzmueller et al. 2024).

    numbers, categories : NumericInput.fit(x, "robust", clip=3.0), and a `CategoricalInput` of `strong_widths`; None
        where the table has no such columns
    task : "classification", with an output for each class, or "regression"
    loss : by default cross_entropy with a label smoothing of 0.1; for numbers mse in units of `out_scale`
    out_scale, out_range : for regression an inverted `Standardize` of the targets, and the least and the largest one
    members : so many networks in one (TabM-mini: Gorishniy, Kotelnikov and Babenko 2025), all dense layers being shared
        but the last; the output is (rows, members, outputs), and the loss `Members`
    rows : how many are trained on, over which batches are then spread evenly: see `even_batches`

    The features (of numbers their pbld embedding) go through a trained scale, three dense layers of 256 units in the
    parametrization of the neural tangent kernel with a parametric activation (selu for classes, mish for numbers) and
    dropout, and a last one; `Recipe.start` gives start values.  Adam with beta2 = 0.95 has a learning rate for each
    kind of parameter, times coslog4, and a weight decay, which like dropout is constant for half of the epochs and then
    falls along a cosine to 0.  `simple` is without embedding, dropout, decay, trained activations, and start from data.
    """
    choice("task", task, ("classification", "regression"))
    epochs, batch_size = whole("epochs", epochs), whole("batch_size", batch_size)
    batch_size = batch_size if rows is None else even_batches(rows, batch_size)
    classes = task == "classification"
    if numbers is None and categories is None:
        raise OptionError("strong() has neither numbers nor categories; expected a layer for one of them")
    if out_scale is not None and not (isinstance(out_scale, Standardize) and out_scale.invert):
        raise OptionError(f"out_scale is {kind_of(out_scale)}; expected an inverted Standardize")
    function: Any = "selu" if classes else "mish"
    hidden: dict[str, Any] = {"ntk": True, "kernel_init": "lecun_normal"}
    if simple:
        hidden["bias_init"] = Normal(1.0)
    else:
        function = f"parametric_{function}"
        numbers = numbers and Sequential(numbers, NumericEmbedding("pbld", 4, 16, 0.1))
    layers: list[Layer] = [TabularInput(numbers, categories), Scale(decay=not simple)]
    if members is not None:
        layers.append(MemberScale(members, "random_signs" if simple else "normal"))
    for _ in range(3):
        layers.append(Dense(256, function, **hidden))
        layers += [] if simple else [Dropout(Epochs(FlatCosine(0.15, epochs)))]
    last: dict[str, Any] = {"ntk": True, "kernel_init": "zeros" if simple else "lecun_normal"}
    layers.append(Dense(outputs, **last) if members is None else MemberDense(members, outputs, **last))
    layers += [] if out_scale is None else [out_scale]
    layers += [] if out_range is None or simple else [Clamp(*out_range)]
    if loss is None:
        scale = 1.0 if out_scale is None else out_scale.scale
        loss = CrossEntropy(label_smoothing=0.1) if classes else MeanSquaredError(scale=scale)
    network = Sequential(*layers)
    return Recipe(
        network,
        loss if members is None else Members(loss),
        _optimizer(network, classes, simple, epochs),
        epochs,
        batch_size,
        "val_accuracy" if classes and loss.labels else "val_loss",
        not simple,
    )


def _optimizer(network: Sequential, classes: bool, simple: bool, epochs: int) -> Optimizer:
    """Adam with a learning rate for each kind of parameter.

    The factor of a kind's rate is also one of its weight decay, which thereby is of its square, as in pytabkit.
    """
    lr = 0.04 if classes else 0.07 if simple else 0.2

    def adam(factor: float, decay: float) -> AdamW:
        kept: Any = Epochs(FlatCosine(decay * factor, epochs)) if decay and not simple else 0.0
        return AdamW(Epochs(CosLog(lr * factor, epochs, 4)), beta2=0.95, weight_decay=kept)

    groups = {"*.bias": adam(0.1, 0.0), "*.scale": adam(6.0, 0.02)}
    if not simple:
        groups = {"*.activation.alpha": adam(0.1, 0.0), **groups}
        if any(True for _ in parts_of(network, NumericEmbedding)):
            groups = {"0.numbers.*": adam(0.1, 0.02), **groups}
    return Grouped(adam(1.0, 0.02), groups)


def even_batches(rows: int, least: int = 256) -> int:
    """The batch size, of at least `least` rows where there are so many, with which all batches are about as large.

    A few rows that are left over would else be a batch of their own, and at the high rates of `strong` a step far off.
    """
    return -(-rows // max(1, rows // least))


def strong_widths(entries: Sequence[int], simple: bool = False) -> tuple[int, ...]:
    """The `width` of a `CategoricalInput` in RealMLP: 8, or one-hot for up to 8 known values, or where it is simple."""
    return tuple(0 if simple or known <= 10 else 8 for known in entries)


def _some(x: Any) -> Any:
    """Rows of x, evenly spaced, where there are many."""
    if isinstance(x, dict):
        return {name: _some(part) for name, part in x.items()}
    return x[:: max(1, -(-x.shape[0] // STARTING))]
