"""Four seeds of the demo's detector trained by one program (vmap) against four in turn."""

import functools

import jax
import timing
from scene_batches import batches, demo

from fpnlab.train.step import init_train, train_step


def main():
    parser = timing.arguments(__doc__)
    parser.add_argument("--batch", type=int, nargs="+", default=[2, 8])
    parser.add_argument("--seeds", type=int, default=4)
    options = parser.parse_args()
    timing.prepare(options)
    rows = []
    for size in options.batch:
        experiment = demo(size)
        init = functools.partial(init_train, detector=experiment.model, train=experiment.train)
        step = functools.partial(
            train_step, experiment.model, experiment.objective, experiment.train
        )
        stacked = batches(experiment, options.seeds)
        keys = jax.random.split(jax.random.key(0), options.seeds)
        together = jax.jit(jax.vmap(step), donate_argnums=0)
        alone = jax.jit(step, donate_argnums=0)
        packed = [jax.vmap(init)(keys)]
        separate = [init(key) for key in keys]
        parts = [jax.tree.map(lambda a, i=i: a[i], stacked) for i in range(options.seeds)]

        def run_packed(together=together, packed=packed, stacked=stacked):
            packed[0], logs = together(packed[0], stacked)
            return jax.block_until_ready(logs)

        def run_in_turn(alone=alone, separate=separate, parts=parts):
            for i, part in enumerate(parts):
                separate[i], logs = alone(separate[i], part)
            return jax.block_until_ready(logs)

        ways = {"packed": run_packed, "in turn": run_in_turn}
        rows += timing.compare(
            f"{options.seeds} seeds, batch {size}", ways, seconds=options.seconds
        )
    timing.report("speed_packed_seeds", rows, options)


if __name__ == "__main__":
    main()
