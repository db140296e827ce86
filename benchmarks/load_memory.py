"""Measures the peak host memory of loading a model, above that of the process before.

    python benchmarks/load_memory.py [--dtype=float32] [--dir=FOLDER_ON_DISK]

Makes a folder of random bfloat16 weights in shards, of the size of Llama 3.2 1B, and
loads it in a process of its own. With jax 0.10.2 on a CPU the peak is 1.01 times the
loaded size in the stored dtype (2.5 GB), and 1.00 times in float32 (4.9 GB); 1.3 is
allowed. It runs on Linux only: it reads the largest resident memory, which includes
mapped pages of files.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import ml_dtypes
import numpy as np

from benchmarks.measures import memory
from fsa.language import huggingface
from fsa.language.huggingface.architecture import arguments
from fsa.language.transformer import Transformer

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": True,
}


def make_folder(folder: pathlib.Path) -> None:
    """Writes random weights, the same in each layer, since only sizes matter."""
    rng = np.random.default_rng(0)

    def random(leaf):
        layer = rng.random((1, *leaf.shape[1:]), np.float32)
        return np.broadcast_to(layer.astype(ml_dtypes.bfloat16), leaf.shape)

    tokens = jax.ShapeDtypeStruct((1, 1), np.int32)
    init = Transformer(**arguments(CONFIG)).init
    params = jax.tree.map(random, jax.eval_shape(init, jax.random.key(0), tokens))
    huggingface.save(folder, CONFIG, params, max_shard_bytes=10**9)


def measure(folder: str, dtype: str | None) -> dict[str, float]:
    """Measures loading, in a process that has done nothing else."""
    jax.block_until_ready(jax.numpy.ones(3) + 1)
    before, start = memory("VmRSS"), time.perf_counter()
    _, params = huggingface.load(folder, dtype)
    jax.block_until_ready(params)
    seconds = time.perf_counter() - start
    loaded = sum(x.nbytes for x in jax.tree.leaves(params))
    peak = memory("VmHWM") - before
    return {"loaded": loaded, "peak": peak, "ratio": peak / loaded, "seconds": seconds}


def main():
    """Prints one line of JSON: bytes and seconds."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--dtype", help="to load in; as stored by default")
    parser.add_argument("--dir", help="where to make the folder for a while")
    parser.add_argument("--folder", help="measure this one, in this process")
    args = parser.parse_args()
    if args.folder:
        print(json.dumps(measure(args.folder, args.dtype)))
        return
    with tempfile.TemporaryDirectory(dir=args.dir) as made:
        folder = pathlib.Path(made) / "model"
        make_folder(folder)
        command = [sys.executable, __file__, f"--folder={folder}"]
        command += [f"--dtype={args.dtype}"] if args.dtype else []
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
