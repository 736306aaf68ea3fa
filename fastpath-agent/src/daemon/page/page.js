// What the page does. Text from the node goes into text nodes only; nothing is fetched from elsewhere.
'use strict';

const $ = (id) => document.getElementById(id);
const made = (name, text, attributes = {}) => {
  const svg = ['path', 'line', 'text', 'title', 'g'].includes(name);
  const element = svg ? document.createElementNS('http://www.w3.org/2000/svg', name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
};
const checked = (name) => document.querySelector(`input[name=${name}]:checked`).value;

// 1234567 becomes "1.2 M".
const short = (number) => {
  const units = ['', 'k', 'M', 'G', 'T', 'P'];
  let unit = 0;
  while (number >= 999.5 && unit < units.length - 1) { number /= 1000; unit += 1; }
  return `${number < 10 && unit ? number.toFixed(1) : Math.round(number)} ${units[unit]}`;
};
const percent = (part, all) => (all ? `${Math.floor((100 * part) / all)} %` : '–');
const clock = (ms) => new Date(ms).toLocaleTimeString([], { hour: '2-digit', minute: '2-digit', second: '2-digit', hour12: false });

// ---- the last hour

const COLUMNS = { packets: [0, 2], bytes: [1, 3] };
const WORDS = {
  started: 'the agent started, version', ready: 'the node is ready', degraded: 'not as it should be:',
  revalidated: 'offloaded flows revalidated after a change:', repaired: 'another program changed the table; repaired:',
  'interface-came': 'interface came:', 'interface-went': 'interface went:', overrun: 'events of the kernel were lost:',
};
const steps = new Map();
let state = null;
let before = null;

const told = (event) => `${WORDS[event.kind] || event.kind} ${event.about}${event.times > 1 ? ` (${event.times} times)` : ''}`.trim();
const wall = (ms) => state.unix_ms - state.now_ms + ms;

function update(news) {
  state = news;
  for (const [number, covered, row] of news.steps) steps.set(number, { covered, row });
  const oldest = Math.floor(news.now_ms / news.step_ms) - news.keeps;
  for (const number of steps.keys()) if (number <= oldest) steps.delete(number);
  $('node').textContent = news.node;
  document.title = `Fastpath ${news.node}`;
  const where = news.watches ? '' : ' Packets are not counted: see --ebpf, and the log.';
  $('standing').textContent = `${news.ready ? 'Ready: ' : 'Not ready: '}${news.standing}.${where}`;
  $('standing').className = news.ready ? '' : 'bad';
  $('about').textContent = `fastpath-agent ${news.version}, Linux ${news.kernel}. Read-only. With nobody looking, numbers are read once a minute; a step without traffic or without a reading is empty.`;
  counts(news.groups);
  sums();
  draw();
  list();
  before = { at: news.now_ms, total: news.total };
}

function sums() {
  const [all, fast] = COLUMNS[checked('unit')];
  let [whole, part] = [0, 0];
  for (const { row } of steps.values()) { whole += row[all]; part += row[fast]; }
  $('share').textContent = percent(part, whole);
  if (before && state.now_ms > before.at) {
    const grown = state.total.map((count, i) => count - before.total[i]);
    const seconds = (state.now_ms - before.at) / 1000;
    $('now').textContent = percent(grown[fast], grown[all]);
    $('rate').textContent = all ? `${short((grown[all] * 8) / seconds)}bit/s` : `${short(grown[all] / seconds)}packets/s`;
  }
}

function draw() {
  const svg = $('chart');
  const [width, height] = [svg.clientWidth, svg.clientHeight];
  if (!state || !width) return;
  const [all, fast] = COLUMNS[checked('unit')];
  const [left, right, top, bottom] = [74, 8, 14, 20];
  const end = state.now_ms / state.step_ms;
  const x = (number) => left + ((number - end + state.keeps) / state.keeps) * (width - left - right);
  const bars = [...steps].map(([number, { covered, row }]) => {
    const scale = (all ? 8000 : 1000) / covered;
    return { covered, from: Math.max(x(number), left), to: x(Math.min(number + 1, end)), all: row[all] * scale, fast: row[fast] * scale };
  }).filter((bar) => bar.to > bar.from);
  // A step that has just begun says little.
  const whole = bars.filter((bar) => bar.covered > 5000);
  const highest = Math.max(1, ...(whole.length ? whole : bars).map((bar) => bar.all));
  const y = (value) => height - bottom - Math.min(value / highest, 1) * (height - top - bottom);
  const area = (low, high) => bars.filter((bar) => high(bar) > low(bar))
    .map((bar) => `M${bar.from.toFixed(1)} ${y(low(bar)).toFixed(1)}H${bar.to.toFixed(1)}V${y(high(bar)).toFixed(1)}H${bar.from.toFixed(1)}Z`).join('');
  const parts = [
    made('path', undefined, { class: 'fast', d: area(() => 0, (bar) => bar.fast) }),
    made('path', undefined, { class: 'slow', d: area((bar) => bar.fast, (bar) => bar.all) }),
  ];
  for (const [value, label] of [[0, '0'], [highest / 2], [highest]]) {
    parts.push(made('line', undefined, { class: 'axis', x1: left, x2: width - right, y1: y(value), y2: y(value) }));
    parts.push(made('text', label || `${short(value)}${all ? 'bit/s' : '/s'}`, { x: left - 6, y: y(value) + 4, 'text-anchor': 'end' }));
  }
  for (const minutes of width < 500 ? [60, 30, 0] : [60, 45, 30, 15, 0]) {
    const at = x(end - (minutes * 60000) / state.step_ms);
    const anchor = minutes === 60 ? 'start' : minutes ? 'middle' : 'end';
    parts.push(made('text', minutes ? `−${minutes} min` : 'now', { x: at, y: height - 5, 'text-anchor': anchor }));
  }
  for (const event of state.events) {
    const at = x(event.at_ms / state.step_ms);
    const mark = made('g');
    mark.append(
      made('title', `${clock(wall(event.at_ms))} ${told(event)}`),
      made('line', undefined, { class: 'event', x1: at, x2: at, y1: top - 4, y2: height - bottom }),
      made('path', undefined, { class: 'flag', d: `M${at - 4} 2h8l-4 8z` }),
    );
    parts.push(mark);
  }
  svg.replaceChildren(...parts);
  const words = checked('unit');
  $('told').textContent = bars.length
    ? `Highest: ${short(highest)}${all ? 'bit/s' : 'packets/s'}. ${$('share').textContent} of all ${words} took the fast path.`
    : 'Nothing is known yet: the first step takes some seconds.';
}

function list() {
  const items = [...state.events].reverse().map((event) => {
    const item = made('li');
    item.append(made('time', clock(wall(event.at_ms))), told(event));
    return item;
  });
  $('events').replaceChildren(...(items.length ? items : [made('li', 'none in the last hour')]));
}

// ---- live numbers, while somebody looks

let source = null;
let waiting = 0;
let silence = 0;

function listen() {
  clearTimeout(waiting);
  if (source || document.hidden) return;
  source = new EventSource('/events');
  source.onmessage = (event) => {
    update(JSON.parse(event.data));
    patience();
  };
  patience();
  source.addEventListener('failed', (event) => problem(event.data));
  source.onerror = () => {
    // One that ended asks again by itself; one that was refused doesn't.
    if (source.readyState !== EventSource.CLOSED) return;
    leave();
    waiting = setTimeout(listen, 10000);
    fetch('/api/history').then(async (answer) => {
      if (answer.ok) update(await answer.json());
      else problem(await answer.text());
    }, () => problem('the agent does not answer'));
  };
}

// Numbers that don't come any more are worse than none.
function patience() {
  clearTimeout(silence);
  silence = setTimeout(() => problem('the agent does not answer'), 8000 + 60 * (state ? state.took_ms : 0));
}

function leave() {
  clearTimeout(silence);
  if (source) source.close();
  source = null;
  before = null;
}

function problem(text) {
  $('standing').textContent = `No news: ${text}. Trying again.`;
  $('standing').className = 'bad';
}

// ---- flows

let asked = null;
let again = 0;

function counts(groups) {
  for (const [name, count] of Object.entries(groups)) $(`n-${name}`).textContent = count;
  $('fast').textContent = groups.fast;
}

async function find() {
  clearTimeout(again);
  if (asked) asked.abort();
  asked = new AbortController();
  const query = new URLSearchParams({ search: $('search').value, group: checked('group') });
  let wait = 10000;
  try {
    const answer = await fetch(`/api/flows?${query}`, { signal: asked.signal });
    if (!answer.ok) throw new Error(await answer.text());
    const found = await answer.json();
    wait = Math.max(wait, 50 * found.took_ms);
    counts(found.groups);
    show(found);
  } catch (error) {
    if (error.name === 'AbortError') return;
    $('found').textContent = `No flows: ${error.message}`;
  }
  again = setTimeout(() => document.hidden || find(), wait);
}

const GROUPS = { fast: 'fast', 'could-be-fast': 'could be fast', never: 'never' };

function show({ flows, matching, unnamed }) {
  const focus = document.activeElement && document.activeElement.dataset.flow;
  const shown = matching > flows.length ? `, the ${flows.length} heaviest are shown` : '';
  $('found').textContent = [`${matching} ${matching === 1 ? 'flow matches' : 'flows match'}${shown}.`, ...unnamed].join(' ');
  $('list').replaceChildren(...flows.map((flow) => {
    const row = made('tr');
    const group = made('td');
    group.append(made('span', GROUPS[flow.group], { class: `tag ${flow.group}` }));
    const name = made('td');
    const button = made('button', flow.named || flow.flow, { type: 'button', 'data-flow': flow.flow });
    button.addEventListener('click', () => why(flow.flow));
    name.append(button);
    if (flow.named) name.append(made('small', flow.flow));
    if (flow.server) name.append(made('small', `served by ${flow.server}`));
    row.append(
      group, name,
      made('td', `${short(flow.bytes)}B`, { class: 'number' }),
      made('td', `${short(flow.packets)}`, { class: 'number', title: 'packets' }),
      made('td', flow.interfaces.join(', ')),
      made('td', flow.why),
    );
    return row;
  }));
  if (focus) for (const button of $('list').querySelectorAll('button')) if (button.dataset.flow === focus) button.focus();
}

async function why(flow) {
  $('why-flow').textContent = flow;
  $('verdict').textContent = 'Watching its packets for a second …';
  $('remedy').textContent = '';
  $('steps').replaceChildren();
  $('command').textContent = `fastpath-agent why ${flow.replace(' > ', ' ')}`;
  if (!$('why').open) $('why').showModal();
  try {
    const answer = await fetch(`/api/why?${new URLSearchParams({ flow })}`);
    if (!answer.ok) throw new Error(await answer.text());
    const told = await answer.json();
    if ($('why-flow').textContent !== flow) return;
    $('verdict').textContent = told.verdict.text;
    $('remedy').textContent = told.verdict.remedy ? `Remedy: ${told.verdict.remedy}` : '';
    $('steps').replaceChildren(...told.steps.map((step) => {
      const item = made('li');
      item.append(made('span', { true: 'ok', false: 'NOT OK' }[step.ok] || '?', { class: step.ok === false ? 'bad' : '' }), made('b', step.step), made('span', step.text));
      return item;
    }));
  } catch (error) {
    $('verdict').textContent = `No answer: ${error.message}`;
  }
}

let typed = 0;
$('search').addEventListener('input', () => { clearTimeout(typed); typed = setTimeout(find, 300); });
$('ask').addEventListener('submit', (event) => { event.preventDefault(); find(); });
for (const input of document.querySelectorAll('input[name=group]')) input.addEventListener('change', find);
for (const input of document.querySelectorAll('input[name=unit]')) input.addEventListener('change', () => { if (state) { sums(); draw(); } });
document.addEventListener('visibilitychange', () => { if (document.hidden) leave(); else { listen(); find(); } });
addEventListener('resize', draw);
listen();
find();
