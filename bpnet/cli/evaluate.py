"""bpnet evaluate: how well a model does on a data set."""

import dataclasses
import time

from bpnet.cli.dataset import read
from bpnet.cli.model import dtype_of, evaluate_rows, features_for, load, location, scores
from bpnet.cli.preprocessing import targets_of
from bpnet.cli.terminal import AsJSON, Backend, Data, Model, Target, show, show_json
from bpnet.errors import plural


def evaluate(
    model: Model, data: Data, target: Target = None, backend: Backend = "numpy", as_json: AsJSON = False
) -> None:
    """Loss and accuracy of MODEL on DATA.

    On the data it was trained with, only the rows that were held out are used; on any other, all rows.
    """
    trainer, provenance = load(model, backend)
    dataset = read(data, target, model=provenance)
    held_out = provenance.held_out(dataset)
    if held_out is not None:
        dataset = dataclasses.replace(dataset, x=dataset.x[held_out], y=dataset.y[held_out])
    x = features_for(trainer, dataset)
    y = targets_of(dataset, trainer.loss, trainer.classes, dtype_of(trainer))
    began = time.perf_counter()
    result = evaluate_rows(trainer, x, y)
    result |= {"seconds": time.perf_counter() - began, **location(trainer), "data": data}
    result |= {"rows": len(x), "held_out": held_out is not None}
    if as_json:
        show_json(result)
    else:
        which = "all that the data has" if held_out is None else "held out from training"
        show(f"{scores(result)} on {plural(len(x), 'row')}, {which}")
