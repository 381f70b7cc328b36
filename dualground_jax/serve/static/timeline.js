// The timeline under the player: a lane for each sentence, with saliency as a curve and moments as bars.

const SVG = 'http://www.w3.org/2000/svg';
const ROWS = 3; // of bars that overlap

/** Seconds as 1:02.5, or 1:02 where `whole`. */
export function clock(seconds, whole = false) {
  const rounded = whole ? Math.round(seconds) : Math.round(seconds * 10) / 10;
  const hours = Math.floor(rounded / 3600);
  const minutes = Math.floor(rounded / 60) % 60;
  const rest = (rounded % 60).toFixed(whole ? 0 : 1).padStart(whole ? 2 : 4, '0');
  return (hours ? `${hours}:${String(minutes).padStart(2, '0')}` : `${minutes}`) + `:${rest}`;
}

/** Seconds in words, as a screen reader says them. */
export function spoken(seconds) {
  const minutes = Math.floor(seconds / 60);
  const rest = `${(seconds % 60).toFixed(1)} seconds`;
  return minutes ? `${minutes} minutes ${rest}` : rest;
}

function path(kind, d) {
  const found = document.createElementNS(SVG, 'path');
  found.setAttribute('class', kind);
  found.setAttribute('d', d);
  return found;
}

/** Points of values from 0 to 1, one a clip, on a field as wide as the video. */
function line(values, clipLength, duration) {
  return values.map((value, i) => {
    const x = Math.min((i + 0.5) * clipLength, duration) / duration * 1000;
    return `${x.toFixed(2)},${(96 - 92 * value).toFixed(2)}`;
  });
}

function scaled(values) {
  const least = Math.min(...values);
  const span = Math.max(...values) - least;
  return values.map((value) => (span ? (value - least) / span : 0.5));
}

export class Timeline {
  /** `seek(seconds)` is called where somebody clicks, `play(query, number)` for a moment. */
  constructor(root, { seek, play }) {
    this.root = root;
    this.lanes = root.querySelector('#lanes');
    this.axis = root.querySelector('#axis');
    this.head = root.querySelector('#head');
    this.seek = seek;
    this.play = play;
    this.duration = 1;
    const at = (event) => {
      const box = this.axis.getBoundingClientRect();
      return Math.min(Math.max((event.clientX - box.left) / box.width, 0), 1) * this.duration;
    };
    root.addEventListener('pointerdown', (event) => {
      if (event.button || event.target.closest('button')) return;
      seek(at(event));
      if (event.target.closest('#axis')) {
        this.axis.setPointerCapture(event.pointerId);
        this.dragging = true;
      }
    });
    root.addEventListener('pointermove', (event) => { if (this.dragging) seek(at(event)); });
    for (const name of ['pointerup', 'pointercancel']) {
      root.addEventListener(name, () => { this.dragging = false; });
    }
    this.axis.addEventListener('keydown', (event) => {
      const step = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10 }[event.key];
      const target = step ? this.now + step : { Home: 0, End: this.duration }[event.key];
      if (target === undefined) return;
      event.preventDefault();
      event.stopPropagation();
      seek(Math.min(Math.max(target, 0), this.duration));
    });
    new ResizeObserver(() => this.drawAxis()).observe(root);
  }

  /** Begins with a video of so many seconds. */
  open(duration) {
    this.duration = Math.max(duration, 0.1);
    this.lanes.replaceChildren();
    this.drawAxis();
    this.moveTo(0);
  }

  drawAxis() {
    const width = this.axis.clientWidth;
    if (!width) return;
    const steps = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600];
    const step = steps.find((each) => (each / this.duration) * width > 64) || 7200;
    this.axis.replaceChildren();
    for (let time = 0; time <= this.duration + 1e-6; time += step) {
      const place = `${(100 * time) / this.duration}%`;
      const tick = document.createElement('i');
      tick.style.left = place;
      const label = document.createElement('span');
      label.style.left = place;
      label.classList.toggle('last', ((this.duration - time) / this.duration) * width < 24);
      label.textContent = clock(time, true);
      this.axis.append(tick, label);
    }
  }

  /** Moves the playhead. */
  moveTo(seconds) {
    this.now = seconds;
    const place = `${100 * Math.min(seconds / this.duration, 1)}%`;
    this.head.style.left = place;
    this.head.firstElementChild.style.transform = `translateX(-${place})`; // stays in the timeline
    this.head.firstElementChild.textContent = clock(seconds);
    this.axis.setAttribute('aria-valuemax', this.duration.toFixed(1));
    this.axis.setAttribute('aria-valuenow', seconds.toFixed(1));
    this.axis.setAttribute('aria-valuetext', spoken(seconds));
  }

  /** Draws the lane of a query: {text, colour, result, shown, lane}; makes it where it is missing. */
  draw(query) {
    const { relevance, clip_length: clipLength } = query.result;
    if (!query.lane) {
      query.lane = document.createElement('div');
      query.lane.className = 'lane';
      this.lanes.append(query.lane);
    }
    query.lane.style.setProperty('--own', `var(--c${query.colour})`);
    const tag = document.createElement('p');
    tag.className = 'tag';
    tag.setAttribute('aria-hidden', 'true');
    tag.textContent = query.text;
    const field = document.createElementNS(SVG, 'svg');
    field.setAttribute('viewBox', '0 0 1000 100');
    field.setAttribute('preserveAspectRatio', 'none');
    field.setAttribute('role', 'img');
    field.setAttribute('aria-label', `How well each part of the video fits “${query.text}”`);
    const points = line(relevance, clipLength, this.duration);
    const ends = [`0,${points[0].split(',')[1]}`, `1000,${points.at(-1).split(',')[1]}`];
    const all = [ends[0], ...points, ends[1]].join(' ');
    field.append(path('area', `M0,100 L${all} L1000,100 Z`), path('curve', `M${all}`));
    query.lane.replaceChildren(tag, field, this.bars(query));
  }

  bars(query) {
    const box = document.createElement('div');
    box.className = 'bars';
    const best = query.moments[0]?.score || 1;
    const free = []; // row -> windows in it
    query.moments.slice(0, query.shown).forEach((moment, number) => {
      let row = free.findIndex((own) => own.every(
        (other) => moment.start >= other.end || moment.end <= other.start));
      if (row < 0) row = Math.min(free.length, ROWS - 1);
      (free[row] ||= []).push(moment);
      const bar = document.createElement('button');
      bar.style.left = `${(100 * moment.start) / this.duration}%`;
      bar.style.width = `${(100 * (moment.end - moment.start)) / this.duration}%`;
      bar.dataset.row = row;
      bar.style.opacity = (0.35 + 0.65 * Math.max(moment.score / best, 0)).toFixed(2);
      bar.setAttribute('aria-label', label(query, number));
      bar.title = `${clock(moment.start)} – ${clock(moment.end)}, score ${moment.score.toFixed(2)}`;
      bar.append(Object.assign(document.createElement('span'), { textContent: number + 1 }));
      bar.addEventListener('click', () => this.play(query, number));
      moment.bar = bar;
      box.append(bar);
    });
    const height = matchMedia('(max-width: 860px)').matches ? 1.65 : 1.2;
    for (const bar of box.children) bar.style.top = `${bar.dataset.row * height}rem`;
    box.style.height = `${Math.max(free.length, 1) * height}rem`;
    return box;
  }

  /** Draws attention, a number a clip, over a query's curve; null takes it away. */
  overlay(query, attention) {
    query.lane?.querySelector('.word')?.remove();
    if (!attention || !query.lane) return;
    const points = line(scaled(attention), query.result.clip_length, this.duration);
    query.lane.querySelector('svg').append(path('word', `M${points.join(' ')}`));
  }
}

/** What a screen reader says of a moment. */
export function label(query, number) {
  const { start, end, score } = query.moments[number];
  return `Moment ${number + 1} of “${query.text}”: from ${spoken(start)} to ${spoken(end)}, score ${score.toFixed(2)}. Play.`;
}
