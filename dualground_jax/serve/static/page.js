// The page: a video, sentences, and what the service finds.

import { call, onLocked, upload } from './api.js';
import { Timeline, clock, label } from './timeline.js';

const POLL = 400; // milliseconds between two looks at a video that is encoded
const SHOWN = 5; // moments of a sentence, before all are asked for
const SHARE = 0.3; // of the best moment's score that the others must have to be shown
const COLOURS = 7;
const $ = (id) => document.getElementById(id);
const player = $('video');

let about = {};
let current = null; // the video, as the service describes it
let queries = []; // {text, colour, item, result, moments, shown, lane}
let playing = null; // {query, number, end}: the moment that plays
let stop = null; // aborts what is under way
let latest = 0; // what was opened last; answers to what was before it are dropped

// Telling

function say(text) { $('status').textContent = text; }

function complain(error) {
  if (error.name === 'AbortError') return;
  $('alert').firstElementChild.textContent = error.message;
  $('alert').hidden = false;
}

function size(bytes) {
  return bytes < 1e6 ? `${Math.max(Math.round(bytes / 1e3), 1)} kB` : bytes < 1e9
    ? `${(bytes / 1e6).toFixed(1)} MB` : `${(bytes / 1e9).toFixed(1)} GB`;
}

function wait(seconds) {
  if (seconds === undefined || !Number.isFinite(seconds)) return '';
  if (seconds < 1) return ', almost done';
  return seconds < 90 ? `, ${Math.ceil(seconds)} s left` : `, ${Math.round(seconds / 60)} min left`;
}

function progress(text, share) {
  $('progress').hidden = false;
  $('doing').textContent = text;
  if (share === undefined) $('bar').removeAttribute('value');
  else $('bar').value = share;
}

// Choosing a video

async function lists() {
  const [samples, videos] = await Promise.all([
    about.samples ? call('GET', 'v1/samples') : { samples: [] }, call('GET', 'v1/videos')]);
  fill($('samples'), samples.samples.map((sample) => ({
    name: sample.path, note: sample.sentences[0] ?? size(sample.bytes),
    open: () => choose(sample.path, sample.sentences[0]),
  })));
  fill($('known'), videos.videos.filter((video) => ['ready', 'queued', 'encoding'].includes(video.state))
    .slice(0, 8).map((video) => ({
      name: video.name, note: video.state === 'ready' ? clock(video.duration || 0, true) : video.state,
      open: () => open(video),
      remove: async () => { await call('DELETE', `v1/videos/${video.id}`); await lists(); },
    })));
}

function fill(box, rows) {
  box.hidden = !rows.length;
  box.querySelector('ul').replaceChildren(...rows.map((row) => {
    const item = document.createElement('li');
    const button = document.createElement('button');
    button.className = 'quiet';
    for (const text of [row.name, row.note]) {
      button.append(Object.assign(document.createElement('span'), { textContent: text }));
    }
    button.addEventListener('click', () => Promise.resolve(row.open()).catch(complain));
    item.append(button);
    if (row.remove) {
      const remove = Object.assign(document.createElement('button'), { className: 'quiet', textContent: '✕' });
      remove.setAttribute('aria-label', `Delete ${row.name}`);
      remove.addEventListener('click', () => row.remove().catch(complain));
      item.append(remove);
    }
    return item;
  }));
}

function begin(name, sentence = '') {
  stop?.abort();
  stop = new AbortController();
  latest += 1;
  $('alert').hidden = true;
  $('choose').hidden = true;
  $('work').hidden = false;
  $('other').hidden = false;
  $('timeline').hidden = true;
  $('hint').hidden = true;
  $('export').hidden = true;
  $('unplayable').hidden = true;
  $('name').textContent = name;
  $('sentence').value = sentence;
  $('details').textContent = '';
  for (const query of queries) query.item.remove();
  queries = [];
  playing = null;
  current = null;
  return latest;
}

function show(address) {
  if (player.src.startsWith('blob:')) URL.revokeObjectURL(player.src);
  player.src = address;
}

async function send(file) {
  if (about.upload_bytes && file.size > about.upload_bytes) {
    complain(new Error(`${file.name} has ${size(file.size)}, the limit is ${size(about.upload_bytes)}.`));
    return;
  }
  const turn = begin(file.name);
  show(URL.createObjectURL(file));
  const started = performance.now();
  progress('Uploading …', 0);
  $('sentence').focus();
  try {
    const video = await upload(file, (share) => {
      if (turn !== latest) return;
      const seconds = (performance.now() - started) / 1000;
      progress(`Uploading, ${Math.round(100 * share)} %${wait(seconds / share - seconds)}`, share);
    }, stop.signal);
    await follow(video, turn);
  } catch (error) {
    fail(error, turn);
  }
}

async function choose(path, sentence) {
  const turn = begin(path, sentence);
  progress('Opening …');
  try {
    const video = await call('POST', 'v1/videos', { path });
    show(video.content);
    await follow(video, turn);
  } catch (error) {
    fail(error, turn);
  }
}

async function open(video) {
  const turn = begin(video.name);
  show(video.content);
  await follow(video, turn).catch((error) => fail(error, turn));
}

function fail(error, turn) {
  if (turn !== latest) return;
  complain(error);
  leave();
}

/** Waits until a video is encoded. */
async function follow(video, turn) {
  for (;;) {
    if (turn !== latest) return;
    current = video;
    details();
    if (video.state === 'ready') break;
    if (video.state === 'failed') throw new Error(`${video.name}: ${video.error}`);
    if (video.state === 'cancelled') { leave(); return; }
    if (video.state === 'queued') progress(video.ahead ? `Waiting, ${video.ahead} before it` : 'Waiting …');
    else progress(`Reading the video${video.progress === undefined ? ' …'
      : `, ${Math.round(100 * video.progress)} %${wait(video.seconds_left)}`}`, video.progress);
    await new Promise((resolve) => { setTimeout(resolve, POLL); });
    if (turn !== latest) return;
    video = await call('GET', `v1/videos/${video.id}`);
  }
  $('progress').hidden = true;
  $('timeline').hidden = false;
  timeline.open(current.duration || player.duration || 1);
  timeline.drawAxis();
  say(`${current.name} is ready. Type a sentence.`);
  $('sentence').focus();
  await Promise.all(queries.map(answer));
}

function details() {
  const { duration, width, height, bytes } = current;
  $('details').textContent = [duration && clock(duration, true), width && `${width} × ${height}`, size(bytes)]
    .filter(Boolean).join(' · ');
}

function leave() {
  stop?.abort();
  latest += 1;
  current = null;
  player.removeAttribute('src');
  player.load();
  $('work').hidden = true;
  $('other').hidden = true;
  $('progress').hidden = true;
  $('choose').hidden = false;
  $('file').value = '';
  $('file').focus();
  lists().catch(complain);
}

// Sentences

function ask(text) {
  const used = new Set(queries.map((query) => query.colour));
  const colour = [...Array(COLOURS).keys()].find((each) => !used.has(each)) ?? queries.length % COLOURS;
  const item = $('query').content.firstElementChild.cloneNode(true);
  const query = { text, colour, item, moments: [], shown: SHOWN };
  item.style.setProperty('--own', `var(--c${colour})`);
  item.querySelector('.words').textContent = text;
  const close = item.querySelector('.close');
  close.setAttribute('aria-label', `Remove “${text}”`);
  close.addEventListener('click', () => remove(query));
  $('queries').append(item);
  queries.push(query);
  if (current?.state === 'ready') answer(query);
  else item.querySelector('.state').textContent = 'Waits for the video.';
}

function remove(query) {
  query.item.remove();
  query.lane?.remove();
  queries = queries.filter((other) => other !== query);
  if (playing?.query === query) playing = null;
  $('export').hidden = !queries.some((other) => other.result);
  $('hint').hidden = !queries.some((other) => other.result);
  $('sentence').focus();
}

async function answer(query) {
  const turn = latest;
  const state = query.item.querySelector('.state');
  query.item.classList.remove('bad');
  state.hidden = false;
  state.textContent = 'Looking …';
  try {
    const found = await call('POST', `v1/videos/${current.id}/queries`, { queries: [query.text], attention: true });
    if (turn !== latest || !queries.includes(query)) return;
    query.result = found.results[0];
  } catch (error) {
    if (turn !== latest) return;
    query.item.classList.add('bad');
    state.textContent = error.message;
    const mendable = error.status === 422; // by another sentence
    const button = Object.assign(document.createElement('button'), {
      className: 'quiet', textContent: mendable ? 'Change it' : 'Try again' });
    button.addEventListener('click', () => {
      if (!mendable) { answer(query); return; }
      $('sentence').value = query.text;
      remove(query);
    });
    state.append(' ', button);
    say(`“${query.text}”: ${error.message}`);
    return;
  }
  const windows = query.result.windows.filter((each) => each[2] > 0);
  query.moments = windows.map(([start, end, score]) => ({ start, end, score }));
  const good = query.moments.filter((moment) => moment.score >= SHARE * query.moments[0].score).length;
  query.shown = Math.min(good, SHOWN);
  state.hidden = query.moments.length > 0;
  state.textContent = 'No moment was found.';
  drawWords(query);
  drawPhrases(query);
  drawMoments(query);
  timeline.draw(query);
  rest();
  $('hint').hidden = false;
  $('export').hidden = false;
  const first = query.moments[0];
  say(first ? `“${query.text}”: ${query.moments.length} moments, the best from ${clock(first.start)} to ${clock(first.end)}.`
    : `“${query.text}”: no moment was found.`);
}

const attends = (query) => query.result.words.some((word) => word.attention);

function rest() {
  $('hint').textContent = queries.some((query) => query.result && attends(query))
    ? 'The curve says how well each part fits the sentence. Point at a word to see which parts answer to it.'
    : 'The curve says how well each part fits the sentence.';
}

/** Shows attention while a button is pointed at or has the focus. */
function onPoint(query, button, attention, text, lit) {
  const on = () => {
    timeline.overlay(query, attention);
    $('hint').textContent = text;
    for (const each of lit()) each.classList.add('lit');
  };
  const off = () => {
    timeline.overlay(query, null);
    rest();
    for (const each of query.item.querySelectorAll('.lit')) {
      each.classList.remove('lit');
      each.style.removeProperty('background');
    }
  };
  for (const name of ['pointerenter', 'focus', 'click']) button.addEventListener(name, on);
  for (const name of ['pointerleave', 'blur']) button.addEventListener(name, off);
}

function drawWords(query) {
  const box = query.item.querySelector('.words');
  if (!attends(query)) return;
  box.replaceChildren();
  query.result.words.forEach((word) => {
    const button = Object.assign(document.createElement('button'), { type: 'button', textContent: word.text });
    button.setAttribute('aria-description', 'Shows where the video answers to this word');
    if (word.attention) onPoint(query, button, word.attention, `Dashed: attention to “${word.text}”`, () => [button]);
    else button.disabled = true;
    box.append(button, ' ');
  });
}

function drawPhrases(query) {
  const box = query.item.querySelector('.phrases');
  const words = query.item.querySelectorAll('.words button');
  box.hidden = !query.result.phrases.length || !words.length;
  box.replaceChildren('Phrases');
  query.result.phrases.forEach((phrase, number) => {
    const best = Math.max(...phrase.shares, 1e-9);
    const strongest = query.result.words.filter((_, i) => phrase.shares[i] >= 0.6 * best).map((word) => word.text);
    const text = strongest.slice(0, 3).join(' ');
    const button = Object.assign(document.createElement('button'), { type: 'button', textContent: text });
    button.setAttribute('aria-label', `Phrase ${number + 1}: ${text}`);
    onPoint(query, button, phrase.attention, `Dashed: attention to phrase ${number + 1}; words are tinted by their share in it`, () => {
      words.forEach((word, i) => {
        word.style.background = `color-mix(in srgb, var(--own) ${Math.round(55 * phrase.shares[i] / best)}%, transparent)`;
      });
      return [button, ...words];
    });
    box.append(button);
  });
}

function drawMoments(query) {
  query.item.querySelector('.moments').replaceChildren(...query.moments.slice(0, query.shown).map((moment, number) => {
    const item = document.createElement('li');
    const button = document.createElement('button');
    button.append(`${clock(moment.start)} – ${clock(moment.end)}`, Object.assign(document.createElement('b'), {
      textContent: moment.score.toFixed(2) }));
    button.setAttribute('aria-label', label(query, number));
    button.addEventListener('click', () => play(query, number));
    moment.chip = button;
    item.append(button);
    return item;
  }));
  const left = query.moments.length - query.shown;
  if (left > 0) {
    const item = document.createElement('li');
    const more = Object.assign(document.createElement('button'), { className: 'more', textContent: `${left} more` });
    more.setAttribute('aria-label', `Show ${left} more moments of “${query.text}”`);
    more.addEventListener('click', () => {
      const first = query.shown;
      query.shown = query.moments.length;
      drawMoments(query);
      timeline.draw(query);
      query.moments[first].chip.focus();
    });
    item.append(more);
    query.item.querySelector('.moments').append(item);
  }
}

// Playing

function seek(seconds) {
  playing = null;
  mark();
  player.currentTime = seconds;
  timeline.moveTo(seconds);
}

function play(query, number) {
  const moment = query.moments[number];
  if (!moment) return;
  player.currentTime = moment.start;
  timeline.moveTo(moment.start);
  playing = { query, number, end: moment.end };
  mark();
  player.play().catch(() => {});
  say(`Plays ${clock(moment.start)} to ${clock(moment.end)}.`);
}

/** Marks the moment that plays. */
function mark() {
  for (const query of queries) {
    query.moments.forEach((moment, number) => {
      const on = playing?.query === query && playing.number === number;
      moment.bar?.classList.toggle('on', on);
      moment.chip?.classList.toggle('on', on);
    });
  }
}

function step(by) {
  const all = queries.flatMap((query) => query.moments.slice(0, query.shown).map((moment, number) => ({ query, number, start: moment.start })))
    .sort((a, b) => a.start - b.start);
  if (!all.length) return;
  let place = all.findIndex((each) => playing?.query === each.query && playing.number === each.number);
  if (place < 0) {
    const next = all.findIndex((each) => each.start > player.currentTime);
    place = by > 0 ? (next < 0 ? all.length : next) - 1 : next < 0 ? all.length : next;
  }
  const { query, number } = all[(place + by + all.length) % all.length];
  play(query, number);
}

function tick() {
  if (!$('timeline').hidden) {
    if (!player.paused || player.seeking) timeline.moveTo(player.currentTime);
    if (playing && !player.seeking && player.currentTime >= playing.end) {
      player.pause();
      timeline.moveTo(player.currentTime);
      playing = null;
      mark();
    }
  }
  requestAnimationFrame(tick);
}

// Export

async function save(format) {
  const asked = queries.filter((query) => query.result);
  let text = '';
  if (format === 'json') {
    text = JSON.stringify(asked.map((query) => query.result), null, 1);
  } else {
    text = await call('POST', `v1/videos/${current.id}/queries`, {
      queries: asked.map((query) => query.text).slice(0, about.sentences), format,
    });
  }
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([text]));
  link.download = `${current.name.replace(/\.[^.]*$/, '')}.${format}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  say(`Saved ${link.download}.`);
}

// Start

const timeline = new Timeline($('timeline'), { seek, play });

$('form').addEventListener('submit', (event) => {
  event.preventDefault();
  const text = $('sentence').value.trim();
  if (!text) return;
  if (about.sentence_length && text.length > about.sentence_length) {
    complain(new Error(`A sentence may have ${about.sentence_length} characters.`));
    return;
  }
  $('alert').hidden = true;
  $('sentence').value = '';
  ask(text);
});
$('file').addEventListener('change', () => { if ($('file').files[0]) send($('file').files[0]); });
$('other').addEventListener('click', leave);
$('cancel').addEventListener('click', async () => {
  const video = current;
  leave();
  if (video && video.state !== 'ready') await call('POST', `v1/videos/${video.id}/cancel`, {}).catch(() => {});
  say('Cancelled.');
});
$('alert').querySelector('button').addEventListener('click', () => { $('alert').hidden = true; });
for (const button of $('export').querySelectorAll('button')) {
  button.addEventListener('click', () => save(button.dataset.format).catch(complain));
}
player.addEventListener('error', () => { $('unplayable').hidden = !player.getAttribute('src'); });
player.addEventListener('loadeddata', () => { $('unplayable').hidden = true; });
player.addEventListener('seeked', () => timeline.moveTo(player.currentTime));

for (const name of ['dragover', 'dragleave', 'drop']) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    document.body.classList.toggle('over', name === 'dragover');
    if (name === 'drop' && event.dataTransfer.files[0]) send(event.dataTransfer.files[0]);
  });
}

document.addEventListener('keydown', (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || $('work').hidden || $('login').open) return;
  const typing = event.target.matches('input');
  if (typing) {
    if (event.key === 'Escape') event.target.blur();
    return;
  }
  const onButton = event.target.matches('button, video, a');
  const act = {
    '/': () => $('sentence').focus(),
    n: () => step(1),
    p: () => step(-1),
    ArrowLeft: () => seek(Math.max(player.currentTime - 5, 0)),
    ArrowRight: () => seek(Math.min(player.currentTime + 5, timeline.duration)),
    ' ': onButton ? null : () => { if (player.paused) player.play().catch(() => {}); else player.pause(); },
  }[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!act) return;
  event.preventDefault();
  act();
});

onLocked(() => new Promise((resolve) => {
  const dialog = $('login');
  $('token').value = '';
  dialog.addEventListener('close', () => resolve($('token').value.trim()), { once: true });
  if (!dialog.open) dialog.showModal();
}));

(async () => {
  about = await call('GET', 'v1');
  $('model').textContent = about.model;
  $('limits').textContent = `Up to ${size(about.upload_bytes)} and ${Math.round(about.video_seconds / 60)} minutes`;
  await lists();
})().catch(complain);
requestAnimationFrame(tick);
