"""A tiny set of tensorflow-datasets with features of every kind."""

import io
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

ROWS = {"train": 23, "test": 7}


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


class FadTiny(tfds.core.GeneratorBasedBuilder):
    """Registered by tensorflow-datasets as fad_tiny when this module is imported."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(4, 4, 1)),
            "sized": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(num_classes=3),
            "text": tfds.features.Text(),
            "nested": {
                "a": np.float32,
                "b": tfds.features.Tensor(shape=(2,), dtype=np.int32),
            },
            "sequence": tfds.features.Sequence(np.int64),
            "words": tfds.features.Sequence(tfds.features.Text()),
            "flag": np.bool_,
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features)
        )

    def _split_generators(self, dl_manager):
        return {name: self._generate_examples(rows) for name, rows in ROWS.items()}

    def _generate_examples(self, rows):
        rng = np.random.default_rng(rows)
        for i in range(rows):
            yield (
                i,
                {
                    "image": _png(rng.integers(0, 256, (4, 4)).astype(np.uint8)),
                    "sized": _png(
                        rng.integers(0, 256, (2 + i % 3, 3, 3)).astype(np.uint8)
                    ),
                    "label": i % 3,
                    "text": "é" * i,
                    "nested": {"a": i / 2, "b": [i, i + 1]},
                    "sequence": list(range(i % 4)),
                    "words": ["ab", "c"][: i % 3],
                    "flag": i % 2 == 0,
                },
            )


def prepare(data_dir: Path) -> None:
    builder = tfds.builder(
        "fad_tiny", data_dir=str(data_dir), file_format="array_record"
    )
    builder.download_and_prepare()
