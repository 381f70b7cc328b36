"""DualGround and its baselines for video moment retrieval and highlight detection, in JAX.

What notebooks and scripts need, imported when it is first used, since JAX alone takes seconds:

    import dualground_jax as dg

    config = dg.load_config('configs/qvh.py:model=cg_detr', {'train.epochs': 50})
    dg.train.train(config, 'runs/qvh')
    metrics = dg.evaluate.evaluate(config, 'runs/qvh')

    predictor = dg.Predictor.from_checkpoint('runs/qvh')
    windows, saliency = predictor.predict([slowfast, clip], query_rows)

    predictor = dg.Predictor.from_checkpoint('runs/mine', encoder='clip=FOLDER')
    windows, saliency = predictor.predict(predictor.encode_video('beach.mp4'), 'a dog runs')

    split = dg.load_split(dg.load_config('runs/qvh').data, 'val')
    model = dg.build_model(config.model)  # of dg.MODELS, the models by name
"""

import importlib
from typing import Any

__version__ = '0.2.0'

# Name -> module, and the name there; modules are offered as they are.
_PUBLIC = {
    'Predictor': ('dualground_jax.grounding.predictor', 'Predictor'),
    'EncodedVideo': ('dualground_jax.grounding.encoded', 'EncodedVideo'),
    'load_config': ('dualground_jax.config', 'load_config'),
    'load_split': ('data_pipelines.datasets', 'load_split'),
    'MODELS': ('dualground_jax.models', 'MODELS'),
    'build_model': ('dualground_jax.models', 'build'),
    'train': ('dualground_jax.train', None),
    'evaluate': ('dualground_jax.evaluate', None),
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    module, attribute = _PUBLIC[name]
    found = importlib.import_module(module)
    return found if attribute is None else getattr(found, attribute)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
