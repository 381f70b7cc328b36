"""Grounding of single queries by a trained checkpoint."""

import dataclasses
import json
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data_pipelines import annotations, datasets, features, pipeline, release
from dualground_jax import evaluate, sharding
from dualground_jax import state as state_lib
from dualground_jax.checkpoints import Checkpoints


@dataclasses.dataclass
class Predictor:
    """A trained model with its config, ready to ground sentences in videos.

    Example:
      predictor = Predictor.from_checkpoint('runs/qvh')
      windows, saliency = predictor.predict([slowfast, clip], query_rows)
    """

    config: ConfigDict
    params: dict
    predict_step: Callable
    mesh: Mesh

    @classmethod
    def from_checkpoint(cls, workdir: str) -> 'Predictor':
        """Loads the best checkpoint of a workdir with its config.

        Raises:
          CheckpointError: there is none.
        """
        checkpoints = Checkpoints(workdir)
        config = checkpoints.config('best')
        mesh = sharding.one_device()
        state, _ = checkpoints.restore('best', state_lib.abstract_state(config, mesh))
        return cls(config, state.eval_params, evaluate.make_predict_step(config, mesh), mesh)

    def predict(
        self,
        video_features: np.ndarray | list[np.ndarray],
        query_features: np.ndarray,
        duration: float | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Finds the moments of a sentence.

        Args:
          video_features: float[T, d] of each stream of `data.video_dirs`, in that order, raw as
            in the feature files; one array if there is one stream.
          query_features: float[R, d_t], raw rows of the text encoder in the config's text layout.
          duration: of the video in seconds; default: what the clips cover.

        Returns:
          (windows float32[K, 3]: start and end in seconds and a score, best first;
          saliency float32[T]).

        Raises:
          DataError: a wrong number of streams, width or number of clips, or values that are not
            finite.
        """
        streams = video_features if isinstance(video_features, list) else [video_features]
        data = self.config.data
        video = release.join_streams(
            data,
            [features.check_rows(rows, f'video_features[{i}]') for i, rows in enumerate(streams)],
            names=[f'video_features[{i}]' for i in range(len(streams))],
        )
        text, roles = release.label_query(
            data, features.check_rows(query_features, 'query_features'), 'query_features'
        )
        record = annotations.Query(
            qid=0,
            query='',
            vid='',
            duration=duration or len(video) * data.clip_length,
            windows=np.zeros((0, 2)),
            clip_ids=np.zeros(0, np.int64),
            clip_scores=None,
            line=0,
        )
        split = datasets.Split(
            name='request',
            queries=[record],
            videos=[video],
            video_index=np.zeros(1, np.int32),
            source_index=np.zeros(1, np.int32),
            text=[text],
            roles=[roles],
            saliency=[np.zeros(len(video), np.float32)],
            problems=[],
        )
        batch = pipeline.collate(split, data, np.zeros(1, int), None)
        placement = sharding.batch_sharding(self.mesh)
        windows, saliency = jax.device_get(
            self.predict_step(self.params, jax.device_put(batch, placement))
        )
        return windows[0][windows[0, :, 2] >= 0], saliency[0, : len(video)]


def predict_files(workdir: str, video_files: list[str], query_file: str) -> None:
    """Prints the moments of one query in one video as JSON: mode `predict` with feature files.

    Args:
      workdir: of the run.
      video_files: one for each stream, or where a stream has data.video_parts, one for each of
        these.
      query_file: text rows.
    """
    predictor = Predictor.from_checkpoint(workdir)
    data = predictor.config.data
    parts = [features.read_features(path, features.VIDEO_KEY) for path in video_files]
    count = len(data.video_parts)
    streams = [release.join_parts(parts[i : i + count]) for i in range(0, len(parts), count)]
    rows = features.read_features(query_file, data.text_key)
    windows, saliency = predictor.predict(streams, rows)
    print(
        json.dumps(
            dict(
                windows=windows.astype(float).round(4).tolist(),
                saliency=saliency.astype(float).round(4).tolist(),
                clip_length=data.clip_length,
            )
        )
    )
