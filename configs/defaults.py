"""Every default of the config, once. Those of the section `data` are in data_pipelines/datasets.py,
those of a model and its losses in the model's file.
"""

from data_pipelines import datasets
from dualground_jax import models

OPTIMIZER = dict(
    learning_rate=1e-4,
    weight_decay=1e-4,
    clip_norm=0.1,
    schedule='constant',  # or 'cosine'
    warmup_steps=0,
    ema_decay=0.0,  # 0: evaluate the parameters themselves
)
TRAIN = dict(
    batch_size=64,
    drop_last=False,  # an epoch's last batch, if it is not full
    buckets=8,  # sizes that batches are padded to, at most; each is compiled
    like_lengths=0,  # > 1: batches between which queries are sorted by length
    epochs=150,
    max_steps=0,  # > 0: stop there, whatever the epochs
    init_from='',  # workdir whose best parameters a new run starts from
    steps_per_call=1,  # > 1: so many steps in one program
    log_every=10,  # steps
    eval_every=5,  # epochs
)
MESH = dict(
    runs=1,  # at a time in one program: of mode sweep
    data=-1,  # all remaining devices
    fsdp=1,
    model=1,
)


def sections(model: str, dataset: str, features: str) -> dict:
    """The whole config of a model, a data set and a release of its features, as nested dicts."""
    data = datasets.defaults(dataset, features)
    return dict(
        seed=2024,
        model=dict(name=model, **models.defaults(model)),
        data=data,
        loss=models.MODELS[model].LOSS,
        optimizer=OPTIMIZER,
        train=TRAIN,
        evaluate=_evaluate(dataset, features, data['clip_length']),
        mesh=MESH,
        sweep=(),  # 'key=value,value' each: what mode sweep runs without --sweep
        world={},  # parameters of the generated data; empty: the data are real
    )


def _evaluate(dataset: str, features: str, clip_length: float) -> dict:
    row = datasets.DATASETS[dataset]
    return dict(
        batch_size=64,
        split='val',
        buckets=4,  # as train.buckets
        nms=0.7,  # IoU; above 1: none
        nms_kind='normal',  # or 'linear', 'hard': nms.py
        round_to=clip_length if row.round_to_clip else 0.0,  # seconds; 0: none
        clip_to=datasets.FEATURES[dataset, features].get('clip_to', row.clip_to),  # seconds
        protocol=dataset,  # of the metrics: key of metrics.PROTOCOLS
        selection=row.selection,
        pictures=4,  # grounding timelines after training
        any_recipe=False,  # also of features by another recipe than the model was trained on
    )
