"""Where bpnet's names are defined: a module is imported when something in it is first asked for.

Tests hold these tables against the modules.
"""

import importlib
from collections.abc import Callable, Mapping
from typing import Any

PUBLIC: Mapping[str, Mapping[str, str]] = {
    "bpnet": {
        "bpnet.backends": "reference",
        "bpnet.backpropagation": "row_losses value_and_grad",
        "bpnet.callbacks.base": "Callback",
        "bpnet.callbacks.checkpoints": "ModelCheckpoint",
        "bpnet.callbacks.history": "History",
        "bpnet.callbacks.loggers": "CSVLogger MLflow TensorBoard",
        "bpnet.callbacks.monitors": "EarlyStopping ReduceOnPlateau",
        "bpnet.callbacks.norms": "Norms",
        "bpnet.callbacks.progress": "Progress",
        "bpnet.checking": "BackendReport check_backend",
        "bpnet.estimators.classifier": "MLPClassifier",
        "bpnet.estimators.regressor": "MLPRegressor",
        "bpnet.inspection": "Inspection Summary inspect",
        "bpnet.layer": "Composite Layer Leaf Rng Run",
        "bpnet.layers.activation": "Activation",
        "bpnet.layers.activations.gates": "GELU HardSwish Mish SiLU",
        "bpnet.layers.activations.others": "Identity LogSoftmax Sine Softmax",
        "bpnet.layers.activations.parametric": "Parametric PReLU",
        "bpnet.layers.activations.rectifiers": "CELU ELU SELU LeakyReLU ReLU ReLU6 Softplus Softshrink SquaredReLU",
        "bpnet.layers.activations.sigmoids": "HardSigmoid HardTanh LogSigmoid Sigmoid Softsign Tanh",
        "bpnet.layers.activity": "ActivityPenalty",
        "bpnet.layers.clamp": "Clamp",
        "bpnet.layers.categorical": "CategoricalInput",
        "bpnet.layers.composition": "Parallel Residual Sequential Shared",
        "bpnet.layers.dense": "Dense",
        "bpnet.layers.dropout": "AlphaDropout Dropout GaussianNoise",
        "bpnet.layers.embedding": "Embedding",
        "bpnet.layers.flatten": "Flatten Reshape",
        "bpnet.layers.bilinear": "Bilinear",
        "bpnet.layers.gated": "GLU GeGLU SwiGLU",
        "bpnet.layers.inputs": "Inputs",
        "bpnet.layers.members": "BatchEnsemble MemberDense MemberScale",
        "bpnet.layers.normalization": "BatchNorm GroupNorm LayerNorm RMSNorm",
        "bpnet.layers.numeric_embedding": "NumericEmbedding",
        "bpnet.layers.numeric": "NumericInput",
        "bpnet.layers.reparametrized": "SpectralNorm WeightNorm",
        "bpnet.layers.scale": "Scale",
        "bpnet.layers.standardize": "Standardize",
        "bpnet.layers.tabular": "TabularInput",
        "bpnet.layout": "Layout layout_of",
        "bpnet.learning_rate": "LearningRateCurve find_learning_rate",
        "bpnet.loading": "load",
        "bpnet.losses.base": "ElementwiseLoss Loss RowLoss",
        "bpnet.losses.binary": "BinaryCrossEntropy BinaryCrossEntropyWithLogits BinaryFocal Hinge SquaredHinge",
        "bpnet.losses.classes": "CrossEntropy Focal KLDivergence",
        "bpnet.losses.heads": "Head Heads",
        "bpnet.losses.likelihood": "Gamma GaussianNLL Poisson Tweedie",
        "bpnet.losses.members": "Members",
        "bpnet.losses.regression": "Huber LogCosh MeanAbsoluteError MeanSquaredError Quantile",
        "bpnet.losses.similarity": "CosineSimilarity Triplet",
        "bpnet.minimization": "minimize",
        "bpnet.optimizers.adafactor": "Adafactor",
        "bpnet.optimizers.adam": "AdaBelief Adam Adamax AdamW NAdam RAdam",
        "bpnet.optimizers.adaptive": "Adadelta Adagrad RMSprop",
        "bpnet.optimizers.around": "SAM Accumulate Clip GradientNoise",
        "bpnet.optimizers.averages": "ExponentialAverage StochasticAverage",
        "bpnet.optimizers.base": "ElementwiseOptimizer Optimizer",
        "bpnet.optimizers.groups": "Grouped",
        "bpnet.optimizers.layerwise": "LAMB LARS",
        "bpnet.optimizers.lbfgs": "LBFGS",
        "bpnet.optimizers.muon": "Muon",
        "bpnet.optimizers.prodigy": "Prodigy",
        "bpnet.optimizers.schedule_free": "ScheduleFreeAdamW",
        "bpnet.optimizers.sgd": "SGD Lion",
        "bpnet.penalties": "L1 L2 Orthogonality Penalty",
        "bpnet.plots.live": "LivePlot",
        "bpnet.schedules": "Constant Cosine CosineRestarts CosLog Epochs Exponential FlatCosine OneCycle Polynomial "
        "Schedule StepDecay WarmUp",
        "bpnet.tabular.model": "TableModel",
        "bpnet.tabular.schema": "Schema",
        "bpnet.tabular.target": "Target",
        "bpnet.tabular.search": "search_table",
        "bpnet.tabular.training": "train_table",
        "bpnet.testing": "GradientReport check_gradients",
        "bpnet.trainer": "Trainer",
        "bpnet.unit_variance": "lsuv",
    },
    "bpnet.data": {
        "bpnet.data.streams.sources": "Field Source",
        "bpnet.data.streams.stream": "Stream stream",
    },
    "bpnet.metrics": {
        "bpnet.metrics.base": "Metric Statistics check_metrics larger_is_better total",
        "bpnet.metrics.classification": "Accuracy BalancedAccuracy Brier CalibrationError ConfusionMatrix FBeta "
        "LogLoss Precision Recall TopKAccuracy",
        "bpnet.metrics.heads": "OfHead",
        "bpnet.metrics.ranking": "AveragePrecision RocAuc Spearman",
        "bpnet.metrics.regression": "MAE MAPE R2 RMSE Pinball",
    },
    "bpnet.distributed": {
        "bpnet.distributed.mpi": "MPI",
        "bpnet.distributed.nccl": "NCCL",
    },
    "bpnet.files": {
        "bpnet.export.c": "to_c",
        "bpnet.export.numpy_source": "to_numpy_source",
        "bpnet.export.onnx.write": "to_onnx",
        "bpnet.export.torch_module": "to_torch_module",
        "bpnet.weights.keras": "from_keras to_keras",
        "bpnet.weights.sklearn": "from_sklearn",
        "bpnet.weights.torch": "from_torch to_torch",
    },
}
"""By module: its public names, by the modules that define them."""

STRINGS: Mapping[str, Mapping[str, str]] = {
    "layer": {
        "bpnet.layers.activations.gates": "gelu gelu_tanh silu swish mish hard_swish",
        "bpnet.layers.activations.others": "identity linear sine softmax log_softmax",
        "bpnet.layers.activations.parametric": "prelu parametric_mish parametric_selu",
        "bpnet.layers.activations.rectifiers": "relu relu6 squared_relu leaky_relu softshrink softplus elu celu selu",
        "bpnet.layers.activations.sigmoids": "sigmoid log_sigmoid tanh softsign hard_sigmoid hard_tanh",
    },
    "loss": {
        "bpnet.losses.binary": "binary_cross_entropy binary_cross_entropy_with_logits binary_focal hinge squared_hinge",
        "bpnet.losses.classes": "cross_entropy kl_divergence focal",
        "bpnet.losses.likelihood": "poisson gamma tweedie gaussian_nll",
        "bpnet.losses.regression": "mean_squared_error mse mean_absolute_error mae huber log_cosh quantile",
        "bpnet.losses.similarity": "cosine_similarity triplet",
    },
    "optimizer": {
        "bpnet.optimizers.adafactor": "adafactor",
        "bpnet.optimizers.adam": "adam amsgrad adamw nadam radam adamax adabelief",
        "bpnet.optimizers.adaptive": "rmsprop adagrad adadelta",
        "bpnet.optimizers.around": "sam",
        "bpnet.optimizers.layerwise": "lars lamb",
        "bpnet.optimizers.lbfgs": "lbfgs",
        "bpnet.optimizers.muon": "muon",
        "bpnet.optimizers.prodigy": "prodigy",
        "bpnet.optimizers.schedule_free": "schedule_free_adamw",
        "bpnet.optimizers.sgd": "sgd lion",
    },
    "metric": {
        "bpnet.metrics.classification": "accuracy top_k_accuracy balanced_accuracy precision recall f1 "
        "f2 f0.5 confusion_matrix log_loss brier calibration_error",
        "bpnet.metrics.ranking": "roc_auc average_precision spearman",
        "bpnet.metrics.regression": "mae rmse mape pinball r2",
    },
}
"""By the family's kind: names as strings, such as "relu", by the modules that define the classes they stand for."""

IN_FILES: Mapping[str, Mapping[str, str]] = {
    "loss": {"bpnet.losses.summed": "_LabelLogLoss _PoissonDeviance _SquaredError"},
}
"""The same of classes that are not public, by the names that files have."""


def _homes(tables: Mapping[str, str]) -> dict[str, str]:
    """The module of each name."""
    return {name: module for module, names in tables.items() for name in names.split()}


CLASSES = {package: _homes(tables) for package, tables in PUBLIC.items()}
_STRINGS = {kind: _homes(tables) for kind, tables in STRINGS.items()}
_IN_FILES = {kind: _homes(tables) for kind, tables in IN_FILES.items()}


def on_demand(package: str, others: tuple[str, ...] = ()) -> Callable[[str], Any]:
    """`__getattr__` of a package: the public names that PUBLIC has of it, and `others`, modules in it."""
    homes = CLASSES[package]

    def getattribute(name: str) -> Any:
        if name in homes:
            return getattr(importlib.import_module(homes[name]), name)
        if name in others:
            return importlib.import_module(f"{package}.{name}")
        closest = importlib.import_module("bpnet.errors").closest
        meant = None if name.startswith("_") else closest(name, (*homes, *others))
        hint = f": did you mean {meant!r}?" if meant else ""
        raise AttributeError(f"module {package!r} has no attribute {name!r}{hint}")

    return getattribute


def define(kind: str, name: str) -> None:
    """Import the module in which bpnet defines `name`, a class or a string for one of that kind, if it does."""
    for homes in (_STRINGS.get(kind, {}), _IN_FILES.get(kind, {}), *CLASSES.values()):
        if name in homes:
            importlib.import_module(homes[name])


def define_all() -> None:
    """Import every module in which bpnet defines names of such families: the estimators are of scikit-learn's."""
    for package in ("bpnet", "bpnet.metrics"):
        for module in PUBLIC[package]:
            if not module.startswith("bpnet.estimators."):
                importlib.import_module(module)
