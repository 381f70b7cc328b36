"""Mode `train-encoder`: trains a small CLIP on pictures and sentences of the generated world.

It leaves WORKDIR/encoder, a Hugging Face folder for --encoder=clip=WORKDIR/encoder.
"""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.flags import FlagValues
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data_pipelines import files, pairs, pictures, progress, sentences
from data_pipelines.errors import ConfigError
from data_pipelines.world import World
from dualground_jax import runtime, sharding
from dualground_jax.checkpoints import Checkpoints
from dualground_jax.encoders import clip, contrastive, tokenizer
from dualground_jax.runs import History, check_same_data, check_same_run, check_steps
from dualground_jax.state import TrainState, abstract_state, make_fresh_state, make_optimizer
from dualground_jax.train import StepClock


def run(values: FlagValues, config: ConfigDict) -> None:
    """Trains an encoder in --workdir."""
    train(config, values.workdir)


def init(config: ConfigDict, key: jax.Array) -> dict:
    """Fresh parameters, as `state.init_model`."""
    size, rows = pictures.SIZE, config.model.context
    return contrastive.build(config.model).init(key, dict(
        frames=jnp.zeros((1, size, size, 3), jnp.uint8), ids=jnp.zeros((1, rows), jnp.int32),
        end=jnp.zeros(1, jnp.int32)))['params']


def make_train_step(
    config: ConfigDict, mesh: Mesh, total_steps: int, abstract: TrainState
) -> Callable:
    """Compiles (state, batch) -> (state, metrics); the state is donated.

    The loss is that of the whole batch, however it is spread over devices.
    """
    model, tx = contrastive.build(config.model), make_optimizer(config.optimizer, total_steps)
    placement = jax.tree.map(lambda x: x.sharding, abstract)
    computed_with = jax.tree.map(sharding.gathered, placement.params)

    @jax.default_matmul_precision('highest')
    def train_step(state, batch):
        def objective(params):
            params = jax.lax.with_sharding_constraint(params, computed_with)
            out = model.apply({'params': params}, batch)
            loss, parts = contrastive.loss_of(out, config.train.word_weight)
            return loss, (parts, out)

        (loss, (parts, out)), grads = jax.value_and_grad(objective, has_aux=True)(state.params)
        is_finite = jnp.isfinite(out['pictures'] + out['sentences']).all(1)
        return state.updated(grads, tx, config.optimizer.ema_decay), dict(
            parts, loss=loss, grad_norm=optax.tree.norm(grads), is_finite=is_finite)

    replicated = sharding.replicated(mesh)
    return jax.jit(
        train_step, donate_argnums=0, in_shardings=(placement, sharding.batch_sharding(mesh)),
        out_shardings=(placement, replicated))


def device_batches(
    config: ConfigDict, mesh: Mesh, tokenize: tokenizer.Tokenizer, steps: range
) -> Iterator[dict[str, jax.Array]]:
    """Draws the batches of steps and puts them on the devices."""
    size, placement = config.train.batch_size, sharding.batch_sharding(mesh)
    rows = sharding.local_rows(placement, size)

    def batch(step):
        frames, captions = pairs.training_batch(
            config.seed, step, size, config.world, config.train.named_concepts)
        ids, lengths = tokenize(captions, config.model.context)
        return dict(frames=frames[rows], ids=ids[rows], end=lengths[rows] - 1)

    for arrays in pairs.ahead(batch, steps):
        yield sharding.put_batch(arrays, placement, size)


def check(config: ConfigDict, mesh: Mesh) -> None:
    """Raises ConfigError or UserError for settings that can't be used."""
    sharding.check_batch_size(mesh, config.train.batch_size, 'train.batch_size')
    for key in ('train.max_steps', 'train.log_every', 'train.eval_every', 'evaluate.pairs',
                'model.layers', 'model.projected'):
        section, name = key.split('.')
        if config[section][name] < 1:
            raise ConfigError(f'{key}={config[section][name]}: expected 1 or more')
    if not 0 <= config.train.word_weight < math.inf:
        raise ConfigError(f'train.word_weight={config.train.word_weight}: expected 0 or more')
    World(**config.world)
    longest = 2 + sentences.MAX_WORDS
    if config.model.context < longest:
        raise ConfigError(f'model.context={config.model.context}: expected {longest} or more, the '
                          'rows of the longest sentence')


def train(config: ConfigDict, workdir: str | os.PathLike) -> dict:
    """Trains an encoder; a run that was cut off goes on from its latest checkpoint.

    Writes into the workdir checkpoints/, metrics.jsonl and TensorBoard events while it runs;
    encoder/ and results.json at its end. Several processes call it alike.

    Returns:
        What is in results.json.

    Raises:
        ConfigError: a size that can't be used.
        CheckpointError: the workdir holds a run by another config, or of more steps.
        TrainingError: a loss is not finite.
    """
    # ---- Data --------------------------------------------------------------------------------
    workdir = pathlib.Path(workdir)
    mesh = sharding.make_mesh(config.mesh)
    check(config, mesh)
    model = contrastive.build(config.model)
    words = tokenizer.WordTokenizer(tokenizer.words_file(contrastive.WORDS))
    held_out = pairs.held_out(config.seed, config.evaluate.pairs, config.world)

    # ---- State -------------------------------------------------------------------------------
    checkpoints, total_steps = Checkpoints(workdir), config.train.max_steps
    told = dict(steps_per_second=0.0, training_data=f'pictures, checksum {held_out.fingerprint()}')
    abstract = abstract_state(config, mesh, total_steps, init)
    parameters = sum(x.size for x in jax.tree.leaves(abstract.params))
    progress.say(f'clip: {parameters} parameters, {total_steps} steps of {config.train.batch_size} '
                 f'on {dict(mesh.shape)} {jax.default_backend()}')
    first_step = checkpoints.step('latest')
    if first_step is None:
        tx = make_optimizer(config.optimizer, total_steps)
        state = make_fresh_state(config, tx, abstract, init)(np.uint32(config.seed))
    else:
        changed = check_same_run(workdir, checkpoints.config('latest'), config)
        check_steps(workdir, first_step, total_steps)
        state, saved = checkpoints.restore('latest', abstract)
        check_same_data(workdir, saved, told)
        told |= saved
        progress.say('; '.join([f'resuming from step {first_step}', *changed]))
    workdir.mkdir(parents=True, exist_ok=True)
    history = History(workdir, 0, first_step or 0, lambda step: [])
    encoder = clip.ClipEncoder(model.vision, model.text, {}, words, '', mesh,
                               config.train.batch_size, config.model.context)

    def score(params) -> dict[str, float]:
        return contrastive.evaluate(
            dataclasses.replace(encoder, params=sharding.gather(params)), held_out)

    # ---- Steps -------------------------------------------------------------------------------
    train_step = runtime.Step(
        make_train_step(config, mesh, total_steps, abstract), 'train')
    steps, clock = range(first_step or 0, total_steps), StepClock()
    batches = device_batches(config, mesh, words, steps)
    with progress.Bar('step', total_steps, 'steps', done=steps.start) as bar:
        for step, batch in enumerate(runtime.one_ahead(batches), steps.start + 1):
            state, metrics = train_step(state, batch)
            history.add(step, metrics)
            due = step % config.train.eval_every == 0 or step == total_steps
            note = None
            if step % config.train.log_every == 0 or due:
                note = f'loss {history.flush()["train/loss"]:.3f}'
                clock.lap(step)
            bar.advance(1, note)
            if due:
                found = score(state.eval_params)
                history.write(step, {f'val/{key}': value for key, value in found.items()})
                progress.say(f'step {step}: {one_line(found)}')
                told['steps_per_second'] = clock.rate or told['steps_per_second']
                checkpoints.save('latest', state, config, told)
                checkpoints.keep(latest=step)
                clock.restart()
    history.writer.close()

    # ---- Results -----------------------------------------------------------------------------
    params = jax.device_put(state.eval_params, sharding.replicated(mesh))
    exact, found = score(params), score(contrastive.rounded(params))
    result = dict(found, before_rounding=exact, steps=total_steps, seed=config.seed,
                  steps_per_second=round(told['steps_per_second'], 3), parameters=parameters,
                  versions=runtime.versions(), config=json.loads(config.to_json()))
    if runtime.is_first():
        contrastive.save(workdir / 'encoder', model, jax.device_get(params),
                         contrastive.card(config, parameters, found))
        files.write_json(workdir / 'results.json', result)  # last: it says that the run is finished
    print(f'{one_line(found)}; in float32 {one_line(exact)}')
    print(f'wrote {workdir / "encoder"} and results.json')
    return result


def one_line(found: dict[str, float]) -> str:
    """What `contrastive.evaluate` found."""
    swaps = f', beats swapped attributes {found["swaps"]:.3f}' if 'swaps' in found else ''
    return (f'retrieval@1 among {found["pairs"]}: to sentence {found["to_sentence"]:.3f}, '
            f'to picture {found["to_picture"]:.3f}{swaps}')
