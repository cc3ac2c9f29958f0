"""One of several ranks: does what `ranks.Run` was asked for, `rank.py TASK`; imports no more than that needs."""

import pickle
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from bpnet.distributed import MPI


def main(task: Path) -> None:
    file, name, args, options = pickle.loads(task.read_bytes())
    spec = spec_from_file_location(Path(file).stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    communicator = MPI(**options).connect()
    value = getattr(module, name)(communicator, *args)
    (task.parent / f"value.{communicator.rank}").write_bytes(pickle.dumps(value))
    communicator.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
