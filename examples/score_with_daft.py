"""Score videos as a column of a Daft data frame: python examples/score_with_daft.py FOLDER OUT (pip install daft)"""

import sys

import daft
import pyarrow as pa

import sama

scorer = sama.Scorer()  # travels as it is; each process loads the model once


@daft.func.batch(return_dtype=daft.DataType.from_arrow_type(pa.struct(list(sama.tables.schema()))), batch_size=32)
def score(paths):
    return scorer(pa.table({"path": paths.to_arrow()})).to_struct_array()


files = daft.from_pydict({"path": sama.files.expand([sys.argv[1]], kind="video")})
scores = files.with_column("quality", score(daft.col("path")))
scores.select("path", daft.col("quality")["score"], daft.col("quality")["reason"]).write_parquet(sys.argv[2])
