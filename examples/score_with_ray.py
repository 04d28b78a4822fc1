"""Score videos as a stage of Ray Data: python examples/score_with_ray.py FOLDER OUT (extra `ray`)"""

import sys

import ray

import sama

paths = [{"path": path} for path in sama.files.expand([sys.argv[1]], kind="video")]
scores = ray.data.from_items(paths).map_batches(
    sama.Scorer,
    fn_constructor_kwargs={"device": "auto"},
    batch_format="pyarrow",
    batch_size=32,
    num_cpus=1,  # or num_gpus=0.5: two of them on each GPU
    compute=ray.data.ActorPoolStrategy(size=1),  # how many of them
)
scores.select_columns(["path", "score", "reason"]).write_parquet(sys.argv[2])
